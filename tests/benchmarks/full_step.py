"""Steps of full fine-tuning, ResNet-50, batches of 16: `python -m tests.benchmarks.full_step ours|usual`.

Ours is the trainer's own step, with all that belongs to it (normalising bytes, moving average, clipping); the usual
one is given normalised photos, in NCHW. BatchNorm learns in both. Prints images/s and the peak of resident memory.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import torch
import torchvision
from torch.nn import functional

from container.memory import keep_freed_memory
from container.preprocessing import Preprocessing
from train.config import TrainConfig
from train.data import Normaliser, TrainingBatches
from train.loop import Setting, Trainer
from train.model import build_resnet

BATCH: Final = 16
CLASSES: Final = 133
STEPS: Final = 4


def ours() -> Callable[[], None]:
    config = TrainConfig(architecture="resnet50", pretrained=False, batch_size=BATCH)
    keep_freed_memory()  # As a job does.
    nothing: Any = None  # What only epochs, not steps, have to do with.
    setting = Setting(
        config=config,
        loader=nothing,
        batches=TrainingBatches(BATCH * STEPS, batch_size=BATCH, seed=0),
        validate=nothing,
        normalise=Normaliser(Preprocessing(), torch.device("cpu")),
        class_weights=torch.ones(CLASSES),
    )
    trainer = Trainer(build_resnet("resnet50", CLASSES), setting)
    trainer.model.train()
    photos = torch.randint(0, 256, (BATCH, 224, 224, 3), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (BATCH,))

    def step() -> None:
        trainer.step_in_epoch = 0
        trainer._step(setting.normalise(photos), labels)

    return step


def usual() -> Callable[[], None]:
    model = torchvision.models.resnet50(num_classes=CLASSES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    photos, labels = torch.randn(BATCH, 3, 224, 224), torch.randint(0, CLASSES, (BATCH,))
    model.train()

    def step() -> None:
        loss = functional.cross_entropy(model(photos), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def main(which: str) -> None:
    torch.manual_seed(0)
    step = {"ours": ours, "usual": usual}[which]()
    step()
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    rate = STEPS * BATCH / (time.perf_counter() - started)
    print(json.dumps({"rate": rate, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    main(sys.argv[1])
