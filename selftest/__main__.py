"""The program `selftest`: exit code 0, or 1 where something without which training or serving cannot work failed."""

from __future__ import annotations

import os
import platform
import signal
import sys
import time

from selftest import machine, programs
from selftest.parity import parity
from selftest.report import Verdict, findings, summary

_CHECKS = (
    *(programs.programs, programs.packages, programs.java, programs.haproxy),
    *(machine.cpu, machine.memory, machine.shared_memory, machine.folders),
    parity,
)


def main() -> int:
    """Print each finding as it is found."""
    started = time.monotonic()
    print(f"kennel selftest as user {os.getuid()} on {platform.system()} {platform.release()} {platform.machine()}")
    found = []
    for finding in findings(_CHECKS):
        print(finding.text(), flush=True)
        found.append(finding)
    print(f"{summary(found)} ({time.monotonic() - started:.1f} s)")
    return int(any(finding.verdict is Verdict.FAILED for finding in found))


def run() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):  # PID 1 has no default action for them.
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    sys.exit(main())


if __name__ == "__main__":
    run()
