"""The program `train`; `python -m train` is the same."""

import sys

from train.entrypoint import main


def run() -> None:
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
