"""One rank of a training that a test looks into: `python -m tests.training_ranks FOLDER BATCH_SIZE STEPS`.

Prints, as JSON, the mean loss of each step over all ranks, and a hash of this rank's weights at the end.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch

from container.contract import SageMakerPaths
from container.preprocessing import Preprocessing
from train.channels import Channels
from train.config import TrainConfig
from train.distributed import World
from train.job import Job
from train.loop import Trainer
from train.model import build_resnet
from train.run import setting_of
from train.sets import open_photo_sets
from train.stop import STOP


def main(folder: Path, batch_size: int, steps: int) -> None:
    torch.set_num_threads(1)
    world = World.join()
    config = TrainConfig(
        architecture="resnet18",
        image_size=32,
        batch_size=batch_size,
        epochs=50,
        workers=0,
        precision="float32",
    )
    sets, _ = open_photo_sets(Channels(training=folder), seed=0, world=world)
    spec = Preprocessing.for_image_size(32)
    job = Job(paths=SageMakerPaths(folder / "none"), config=config, world=world, sets=sets, spec=spec)
    torch.manual_seed(0)
    trainer = Trainer(
        build_resnet("resnet18", len(sets.class_names)), setting_of(job, torch.ones(len(sets.class_names)))
    )
    losses: list[float] = []
    totals = [0.0, 0.0]
    update = trainer.ema.update

    def note(model: torch.nn.Module, step: int) -> None:
        update(model, step)
        count, loss, _ = world.sum(trainer.sums.clone()).tolist()
        if count < totals[0]:
            totals[:] = [0.0, 0.0]
        losses.append((loss - totals[1]) / (count - totals[0]))
        totals[:] = [count, loss]
        if len(losses) >= steps:
            STOP.signal = 15

    trainer.ema.update = note  # type: ignore[method-assign]
    trainer.fit()
    digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in trainer.model.state_dict().values())).hexdigest()
    print(json.dumps({"losses": losses, "weights": digest}), flush=True)
    world.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
