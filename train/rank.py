"""One of several training processes that somebody else's torchrun started: `torchrun --nproc-per-node 4 -m train …`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn

from container.contract import SageMakerPaths
from container.errors import ConfigError
from train.config import TrainConfig

# Numbers; MASTER_ADDR is a name.
_NEEDED: Final = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")


def one_of_several(env: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment says that other processes train with this one."""
    return env.get("WORLD_SIZE", "1") != "1"


def run_rank(paths: SageMakerPaths, config: TrainConfig) -> bool:
    """Train as this rank, and return whether it is the one that leaves the artifact. Raises ConfigError too."""
    check_environment(os.environ)
    from train.distributed import World  # torch takes seconds to import.
    from train.run import run_job

    world = World.join()
    if not world.leads:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for the process's life
    run_job(paths, config, world)
    world.leave()
    return world.leads


def check_environment(env: Mapping[str, str]) -> None:
    """Raise ConfigError where torchrun's variables are there by halves: torch would wait, or end without a word."""
    missing = [name for name in _NEEDED if not env.get(name, "").isdigit()]
    if missing or not env.get("MASTER_ADDR"):
        raise ConfigError(
            f"WORLD_SIZE={env['WORLD_SIZE']} makes this one of several processes, but torchrun's other variables are "
            f"not all there ({', '.join(missing) or 'MASTER_ADDR'}); start them with torchrun, or unset WORLD_SIZE"
        )


def leave_failed(code: int) -> NoReturn:
    """End at once: threads of a broken process group must not keep a failed process alive."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
