"""`python -m serve`, and the console script `serve`."""

from __future__ import annotations

import os
import sys

from serve.entrypoint import main


def run() -> None:
    sys.exit(main(os.environ))


if __name__ == "__main__":
    run()
