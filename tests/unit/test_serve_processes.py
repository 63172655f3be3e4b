"""The signals of PID 1, sent to a real process."""

from __future__ import annotations

import signal
import subprocess
import sys

WAITS = """
from serve.processes import Processes

processes = Processes()
print("waits", flush=True)
while not processes.stop_asked:
    processes.wait(0.001)
"""


def test_signals_that_come_at_any_moment_neither_hang_nor_break_it() -> None:
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE) as waiting:
        assert waiting.stdout
        waiting.stdout.readline()
        for _ in range(20_000):
            waiting.send_signal(signal.SIGCHLD)
        waiting.send_signal(signal.SIGTERM)
        try:
            assert waiting.wait(10) == 0
        finally:
            waiting.kill()
