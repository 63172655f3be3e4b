"""`python -m serve`, and the console script `serve`."""

from __future__ import annotations

import os
import signal
import sys


def run() -> None:
    # PID 1 ignores a signal that it has no handler for, and the imports take half a second. Nothing is started by them
    # that would need an end, and an exception is lost where it comes out of a finalizer.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from serve.entrypoint import main

    sys.exit(main(os.environ))


if __name__ == "__main__":
    run()
