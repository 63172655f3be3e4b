"""The program `train`; `python -m train` is the same."""

import os
import sys

from container.preprocessing import silence_pillow
from train.entrypoint import main
from train.rank import leave_failed, one_of_several


def run() -> None:
    # Read when torch loads its OpenMP library. By default waiting threads spin, and beside any other busy process (the
    # loader's workers, for one) an epoch then takes many times as long (seen: no epoch in 100 s against 37 images/s).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    silence_pillow()
    code = main(sys.argv[1:])
    if code and one_of_several():
        leave_failed(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
