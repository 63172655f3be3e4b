"""Steps of a ResNet-18 in two processes beside each of them alone: `torchrun --nproc-per-node 2 -m …two_processes N`.

The trainer's own steps, batches of 32 photos of 96 x 96 a process, one thread each, BatchNorm frozen on both sides (as
it must be between processes on CPUs). N rounds of short turns, since a machine's speed changes within seconds: one
process alone while the other waits, the other alone, both together. Prints each round's images/s as JSON:
[[first alone, second alone, together], …].
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

import torch

from container.memory import keep_freed_memory
from container.preprocessing import Preprocessing
from tests.benchmarks.full_step import CLASSES
from train.config import TrainConfig
from train.data import Normaliser, TrainingBatches
from train.distributed import ALONE, World
from train.loop import Setting, Trainer
from train.model import build_resnet, quiet_branches
from train.recipe import freeze_batchnorm

BATCH: Final = 32
SIZE: Final = 96
STEPS: Final = 3


class Turn:
    """A trainer, alone or with the others of `world`, and its photos."""

    def __init__(self, world: World) -> None:
        config = TrainConfig(architecture="resnet18", pretrained=False, batch_size=BATCH, precision="float32")
        nothing: Any = None  # What only epochs, not steps, have to do with.
        self._setting = Setting(
            config=config,
            loader=nothing,
            batches=TrainingBatches(BATCH * world.size * STEPS, batch_size=BATCH, seed=0, world=world),
            validate=nothing,
            normalise=Normaliser(Preprocessing(), world.device),
            class_weights=torch.ones(CLASSES),
            world=world,
            batchnorm_frozen=True,
        )
        torch.manual_seed(0)
        model = build_resnet("resnet18", CLASSES)
        quiet_branches(model)
        self._trainer = Trainer(model, self._setting)
        self._trainer.parallel.train()
        freeze_batchnorm(model)
        self._photos = torch.randint(0, 256, (BATCH, SIZE, SIZE, 3), dtype=torch.uint8)
        self._labels = torch.randint(0, CLASSES, (BATCH,))

    def run(self) -> float:
        """Take STEPS steps; images/s of this process."""
        started = time.perf_counter()
        self._trainer.step_in_epoch = 0
        for _ in range(STEPS):
            self._trainer._step(self._setting.normalise(self._photos), self._labels)
            self._setting.world.any(False, False)  # As the trainer asks after each step.
        return STEPS * BATCH / (time.perf_counter() - started)


def measure(rounds: int) -> list[list[float]]:
    keep_freed_memory()  # As a job does.
    world = World.join()
    alone, together = Turn(ALONE), Turn(world)
    alone.run()
    together.run()
    found = []
    for _ in range(rounds):
        singles = []
        for rank in range(world.size):
            world.gather(None)  # The others wait in the next one, and compute nothing meanwhile.
            singles.append(alone.run() if world.rank == rank else 0.0)
        world.gather(None)
        rates = world.gather([*singles, together.run()])
        slowest = min(rate[-1] for rate in rates)
        found.append([*(rates[rank][rank] for rank in range(world.size)), world.size * slowest])
    world.leave()
    return found if world.leads else []


if __name__ == "__main__":
    if rounds := measure(int(sys.argv[1])):
        print(json.dumps(rounds))
