"""One of several training processes, started by torchrun."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from container.contract import SageMakerPaths
from train.casualty import Casualty, leave_word
from train.config import TrainConfig, read_command_line, read_hyperparameters
from train.distributed import World
from train.launch import HOST, RUN_FOLDER, announce_process
from train.run import run_job
from train.stop import STOP


def main() -> int:
    """Train as this rank; return the exit code."""
    folder = Path(os.environ[RUN_FOLDER])
    rank, asking = int(os.environ["RANK"]), folder / "stop"
    try:
        announce_process(folder, rank)
        STOP.install(asking)
        sys.stdout = sys.stdout if rank == 0 else Path(os.devnull).open("w")  # noqa: SIM115 - for the process's life
        paths = SageMakerPaths.from_env()
        given = read_hyperparameters(paths.hyperparameters)
        config = TrainConfig.from_hyperparameters(given, read_command_line(sys.argv[1:]))
        world = World.join()
        run_job(paths, config, world)
        world.leave()
    except BaseException as error:  # The translator: the parent process tells SageMaker.
        STOP.hold()  # A signal that comes now must not take the word away.
        place = f"rank {rank}, host {os.environ[HOST]}"
        leave_word(folder, rank, Casualty.of(error, place=place, asked=asking.exists()))
        traceback.print_exception(error)
        return 1
    return 0


if __name__ == "__main__":
    # Threads of a broken process group must not keep a failed process alive.
    code = main()
    sys.stderr.flush()
    os._exit(code)
