"""The program `doctor`: look at the photos that `train` would train on, and say what is wrong with them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from container.contract import SageMakerPaths
from container.errors import UserError
from train.config import TrainConfig, read_command_line, read_hyperparameters
from train.folders import make_writable
from train.stop import STOP, Stopped


def main(arguments: Sequence[str]) -> int:
    """Exit code 0, or 1 where `train` would refuse the photos; 143 (130 for ^C) where it was stopped."""
    started = time.perf_counter()
    paths = SageMakerPaths.from_env()
    try:
        STOP.install()
        from train.channels import find_channels  # torch, below these, takes seconds to import.
        from train.distributed import ALONE
        from train.run import report_findings
        from train.sets import check_leaks, check_photo_sets, open_photo_sets

        given = read_hyperparameters(paths.hyperparameters)
        config = TrainConfig.from_hyperparameters(given, read_command_line(arguments))
        make_writable(paths.output_data)
        sets, findings = open_photo_sets(find_channels(paths), seed=config.seed, world=ALONE)
        report_findings(findings, paths)
        check_photo_sets(sets)
        check_leaks(findings, strict=config.strict_data)
    except (UserError, Stopped) as error:
        print(f"error: {error}", file=sys.stderr)
        return STOP.exit_code if isinstance(error, Stopped) else 1
    seconds = time.perf_counter() - started
    print(f"looked at {findings.photos} photos in {seconds:.1f} s; {paths.output_data / 'doctor.json'} names them all")
    return 0


def run() -> None:
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
