"""Steps of a ResNet-18 in two processes beside each of them alone.

    torchrun --nproc-per-node 2 -m tests.benchmarks.two_processes ROUNDS SIZE STEPS

The trainer's own steps, batches of 32 photos of SIZE x SIZE a process, one thread each, BatchNorm frozen on both sides
(as it must be between processes on CPUs). Rounds of short turns of STEPS steps, since a machine's speed changes within
seconds: one process alone while the other waits, the other alone, both as one training, and both at once with nothing
in common, which is what the machine allows. Prints images/s as JSON: [{"alone", "together", "apart"}, …].
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


class Turn:
    """A trainer, alone or with the others of `world`, and its photos."""

    def __init__(self, world: World, *, size: int, steps: int) -> None:
        self._steps = steps
        config = TrainConfig(architecture="resnet18", pretrained=False, batch_size=BATCH, precision="float32")
        nothing: Any = None  # What only epochs, not steps, have to do with.
        self._setting = Setting(
            config=config,
            loader=nothing,
            batches=TrainingBatches(BATCH * world.size * steps, batch_size=BATCH, seed=0, world=world),
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
        self._photos = torch.randint(0, 256, (BATCH, size, size, 3), dtype=torch.uint8)
        self._labels = torch.randint(0, CLASSES, (BATCH,))

    def run(self) -> float:
        """Take the steps; images/s of this process."""
        started = time.perf_counter()
        self._trainer.step_in_epoch = 0
        for _ in range(self._steps):
            self._trainer._step(self._setting.normalise(self._photos), self._labels)
            self._setting.world.any(False, False)  # As the trainer asks after each step.
        return self._steps * BATCH / (time.perf_counter() - started)


def measure(rounds: int, size: int, steps: int) -> list[dict[str, float]]:
    keep_freed_memory()  # As a job does.
    world = World.join()
    alone, together = (Turn(each, size=size, steps=steps) for each in (ALONE, world))
    alone.run()
    together.run()
    found = []
    for _ in range(rounds):
        own = 0.0
        for rank in range(world.size):
            world.gather(None)  # The others wait in the next one, and compute nothing meanwhile.
            if world.rank == rank:
                own = alone.run()
        rates = {"alone": sum(world.gather(own))}
        for name, turn in (("together", together), ("apart", alone)):
            world.gather(None)
            rates[name] = world.size * min(world.gather(turn.run()))
        found.append(rates)
    world.leave()
    return found if world.leads else []


if __name__ == "__main__":
    if found := measure(*map(int, sys.argv[1:])):
        print(json.dumps(found))
