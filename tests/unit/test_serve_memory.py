"""What a large photo took is the kernel's again when it is answered."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from tests.serving import REPOSITORY

_PROGRAM = textwrap.dedent(
    """
    import resource, sys
    from serve.memory import keep_large_blocks_apart
    if sys.argv[1] == "apart":
        keep_large_blocks_apart()
    def resident_mib():
        return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
    before, kept = resident_mib(), []
    for _ in range(10):
        photo = bytearray(b"x") * (16 * 2**20)
        kept.extend(bytes(2000) for _ in range(100))
        del photo
    print(resident_mib() - before)
    """
)


def _grown_mib(how: str) -> float:
    command = [sys.executable, "-c", _PROGRAM, how]
    return float(subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout)


def test_small_objects_that_live_on_do_not_hold_large_blocks() -> None:
    assert _grown_mib("by default") > 12
    assert _grown_mib("apart") < 6
