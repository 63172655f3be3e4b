"""`serve`, PID 1 of a serving container: starts HAProxy and MMS, watches them, and answers for the exit code."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from container.errors import KennelError
from serve.config import ServeConfig
from serve.logs import log
from serve.processes import Processes
from serve.stack import Stack


def main(env: Mapping[str, str]) -> int:
    """Serve until SIGTERM; 0 if it was drained, 1 with one sentence on stderr otherwise."""
    processes = Processes()
    folder = Path(tempfile.mkdtemp(prefix="kennel-"))
    try:
        serve(ServeConfig.from_env(env), folder, processes, env)
    except KennelError as error:
        problem = f"serve: {error}"
    else:
        problem = ""
    finally:
        processes.kill_all()
        shutil.rmtree(folder, ignore_errors=True)
    log("serve", "stopped")
    if problem:
        print(problem, file=sys.stderr, flush=True)
    return 1 if problem else 0


def serve(config: ServeConfig, folder: Path, processes: Processes, env: Mapping[str, str]) -> None:
    """From the settings to the last answer; raises KennelError for what ends it early."""
    stack = Stack(config, folder)
    stack.start(processes, env)
    stack.verify()
    stack.watch(processes)
    stack.drain(processes)
