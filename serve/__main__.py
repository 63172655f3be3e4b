"""`python -m serve`, and the console script `serve`."""

from __future__ import annotations

import os
import signal
import sys


def run() -> None:
    # PID 1 ignores a signal that it has no handler for, and the imports take half a second.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from serve.entrypoint import main

    sys.exit(main(os.environ))


if __name__ == "__main__":
    run()
