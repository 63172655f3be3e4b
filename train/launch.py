"""Start the training processes of this host through torchrun, and answer for how they end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from container.errors import TrainingError
from train.casualty import Casualty, first_of, words_in
from train.hostlink import DEFAULT_WAIT_S, WORD_S, HostLink, meet
from train.stop import STOP
from train.topology import MASTER_PORT, Topology, network_environment, thread_environment

# SageMaker's SIGKILL comes 120 s after its SIGTERM; torchrun's own default would leave its processes 30 s.
_STOP_S: Final = 105
_POLL_S: Final = 0.1
# Where the processes of this host find the file that asks them to stop, and leave word of a failure.
RUN_FOLDER: Final = "KENNEL_RUN_FOLDER"
HOST: Final = "KENNEL_HOST"
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
        *("--nnodes", str(len(topology.hosts)), *_rendezvous(topology)),
        *("--nproc-per-node", str(topology.processes), "--shutdown-timeout", str(_STOP_S)),
        *("-m", "train.worker", *arguments),
    ]
    settings = {**network_environment(topology), **thread_environment(topology)}
    env = {**os.environ, **settings, RUN_FOLDER: str(folder), HOST: topology.current}
    # A session of its own: a signal to our process group is passed on by us, once, in order.
    return subprocess.Popen(command, env=env, start_new_session=True)


def _rendezvous(topology: Topology) -> tuple[str, ...]:
    """Where processes meet. Hosts must know the port; on one, torchrun finds one that no other job there has."""
    if len(topology.hosts) == 1:
        return ("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1")
    return ("--node-rank", str(topology.rank), "--master-addr", topology.hosts[0], "--master-port", str(MASTER_PORT))


def _watch(process: subprocess.Popen[bytes], folder: Path, link: HostLink | None) -> None:
    asked: float | None = None
    while process.poll() is None:
        time.sleep(_POLL_S)
        if STOP.requested() and asked is None:
            (folder / "stop").touch()
            asked = time.monotonic()
        if link is not None and _must_end(link):
            break
        if asked is not None and time.monotonic() - asked > _STOP_S:
            raise TrainingError(f"the training processes did not end within {_STOP_S} s of being asked to")
    own = None if process.returncode == 0 else _own_failure(process, folder)
    for path in folder.glob("pid-*"):
        if process.returncode is not None:
            path.unlink()  # They have ended, and their numbers may soon be others'.
    failure = own if link is None else link.settle(own)
    if failure is not None:
        raise failure.error()


def _must_end(link: HostLink) -> bool:
    """Another host has failed; where that was in the wake of this one's processes, they are given time to say so."""
    failure = link.failure
    return failure is not None and (not failure.wake or link.silent_s > WORD_S)


def _own_failure(process: subprocess.Popen[bytes], folder: Path) -> Casualty | None:
    """What this host's processes have to say; None where they still run, and another host has ended the job."""
    if process.returncode is None:
        return first_of(words_in(folder).values())
    return failure_of(folder, process.returncode)


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


def failure_of(folder: Path, code: int) -> Casualty:
    """Why the processes of this host ended, told from what they left: the first to fail, not those in its wake."""
    found = words_in(folder)
    first = first_of(found.values())
    if first is not None and not first.wake:
        return first
    # A process that the kernel ends leaves no word, and all others fail in its wake.
    silent = sorted({int(path.name.partition("-")[2]) for path in folder.glob("pid-*")} - set(found))
    if first is not None and not silent:
        return first
    message = f"torchrun could not start the training processes (it ended with {code}); the log says why"
    if silent:
        who = f"the training process of rank {silent[0]}"
        message = f"{who} ended without a word (torchrun ended with {code}); killed for want of memory, perhaps?"
    return Casualty(message=message, time=time.time())
