"""`serve`, PID 1 of a serving container: starts HAProxy and MMS, watches them, and answers for the exit code."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from container.errors import ConfigError, KennelError
from serve.config import ServeConfig
from serve.logs import log
from serve.processes import Processes
from serve.stack import Stack


def main(env: Mapping[str, str]) -> int:
    """Serve until SIGTERM; 0 if it was drained, 1 with one sentence on stderr otherwise."""
    processes = Processes()
    problem = ""
    try:
        with scratch() as folder:
            try:
                serve(ServeConfig.from_env(env), folder, processes, env)
            finally:
                processes.kill_all()
    except KennelError as error:
        problem = f"serve: {error}"
    log("serve", "stopped")
    if problem:
        print(problem, file=sys.stderr, flush=True)
    return 1 if problem else 0


@contextmanager
def scratch() -> Iterator[Path]:
    """The one folder that is written to. Raises ConfigError."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="kennel-"))
    except OSError as error:
        raise ConfigError(
            "no temporary folder can be written to; beside a read-only root, mount one with --tmpfs /tmp"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def serve(config: ServeConfig, folder: Path, processes: Processes, env: Mapping[str, str]) -> None:
    """From the settings to the last answer; raises KennelError for what ends it early."""
    stack = Stack(config, folder)
    stack.start(processes, env)
    stack.verify()
    stack.watch(processes)
    stack.drain(processes)
