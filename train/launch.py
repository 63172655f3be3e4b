"""Start the training processes of this host through torchrun, and answer for how they end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from container.errors import KennelError, TrainingError, UserError
from train.hostlink import DEFAULT_WAIT_S, HostLink, meet
from train.stop import STOP, Stopped
from train.topology import MASTER_PORT, Topology, network_environment

# SageMaker's SIGKILL comes 120 s after its SIGTERM; torchrun's own default would leave its processes 30 s.
_STOP_S: Final = 105
_POLL_S: Final = 0.1
# Where the processes of this host find the file that asks them to stop, and leave word of a failure.
RUN_FOLDER: Final = "KENNEL_RUN_FOLDER"
_WAIT: Final = "KENNEL_HOST_WAIT_SECONDS"


def run_processes(topology: Topology, arguments: Sequence[str]) -> None:
    """Train with all processes of all hosts. Raises what the first of them to fail raised, on every host."""
    link = None
    if len(topology.hosts) > 1:
        link = meet(topology, wait_s=float(os.environ.get(_WAIT, DEFAULT_WAIT_S)))
    with tempfile.TemporaryDirectory(prefix="kennel-run-") as folder:
        STOP.hold()  # From here on it is the processes that have something to save.
        process = _torchrun(topology, arguments, Path(folder))
        try:
            _watch(process, Path(folder), link)
        finally:
            _kill(process, Path(folder))
            if link is not None:
                link.close()


def _torchrun(topology: Topology, arguments: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    command = [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", str(len(topology.hosts)), "--node-rank", str(topology.rank)),
        *("--nproc-per-node", str(topology.processes)),
        *("--master-addr", "127.0.0.1" if len(topology.hosts) == 1 else topology.hosts[0]),
        *("--master-port", str(_port(topology)), "--shutdown-timeout", str(_STOP_S)),
        *("-m", "train.worker", *arguments),
    ]
    env = {**os.environ, **network_environment(topology), RUN_FOLDER: str(folder)}
    # A session of its own: a signal to our process group is passed on by us, once, in order.
    return subprocess.Popen(command, env=env, start_new_session=True)


def _port(topology: Topology) -> int:
    # Jobs that share one machine must not meet; hosts of one job must.
    return MASTER_PORT if len(topology.hosts) > 1 else 10_000 + os.getpid() % 20_000


def _watch(process: subprocess.Popen[bytes], folder: Path, link: HostLink | None) -> None:
    asked: float | None = None
    while process.poll() is None:
        time.sleep(_POLL_S)
        if STOP.requested() and asked is None:
            (folder / "stop").touch()
            asked = time.monotonic()
        if link is not None and link.failure is not None:
            raise TrainingError(link.failure)
        if asked is not None and time.monotonic() - asked > _STOP_S:
            raise TrainingError(f"the training processes did not end within {_STOP_S} s of being asked to")
    for path in folder.glob("pid-*"):
        path.unlink()  # They have ended, and their numbers may soon be others'.
    if process.returncode != 0:
        error = first_failure(folder, process.returncode)
        if link is not None:
            link.fail(str(error))
        raise error
    if link is not None:
        link.finish(timeout_s=60)
        if link.failure is not None:
            raise TrainingError(link.failure)


def _kill(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Leave no process behind: torchrun gives each of its own a session, so each is named by its file."""
    for path in folder.glob("pid-*"):
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.kill(int(path.read_text()), signal.SIGKILL)
    if process.poll() is None:
        process.kill()
        process.wait()


def announce_process(folder: Path, rank: int) -> None:
    """Let the parent of this process know whom to end."""
    (folder / f"pid-{rank}").write_text(str(os.getpid()))


def report_failure(folder: Path, rank: int, error: BaseException) -> None:
    """Leave word for the parent of this process."""
    kind = "stopped" if isinstance(error, Stopped) else "user" if isinstance(error, UserError) else "other"
    message = str(error) if isinstance(error, KennelError | Stopped) else f"{type(error).__name__}: {error}"
    value = {"time": time.time(), "rank": rank, "kind": kind, "message": message}
    staged = folder / f".failure-{rank}"
    staged.write_text(json.dumps(value), encoding="utf-8")
    staged.replace(folder / f"failure-{rank}.json")


def first_failure(folder: Path, code: int) -> BaseException:
    """What the first process to fail raised, told from what those that failed in its wake say."""
    found: list[dict[str, Any]] = [json.loads(path.read_text()) for path in folder.glob("failure-*.json")]
    if not found:
        return TrainingError(f"a training process ended with code {code} and without a word; out of memory, perhaps?")
    first = min(found, key=lambda value: float(value["time"]))
    kinds: dict[str, type[BaseException]] = {"stopped": Stopped, "user": UserError, "other": TrainingError}
    where = "" if first["kind"] in ("stopped", "user") else f" (rank {first['rank']})"
    return kinds[first["kind"]](f"{first['message']}{where}")
