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
        stack = Stack.plan(ServeConfig.from_env(env), folder)
        stack.start(processes, env)
        stack.verify()
        stack.watch(processes)
        stack.drain(processes)
    except KennelError as error:
        print(f"serve: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        processes.kill_all()
        shutil.rmtree(folder, ignore_errors=True)
    log("serve", "stopped")
    return 0
