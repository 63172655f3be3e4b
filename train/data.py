"""Photos on disk -> batches.

Training batches are uint8 pixels, (batch, height, width, 3), augmented; `Normaliser` turns them into the network's
input on the device: a quarter of float32's bytes to hand over between processes. Evaluation batches are what serving
sees, float32 (batch, 3, height, width), made by container.preprocessing.preprocess.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms.v2 import RandAugment

from container.preprocessing import Float32Array, Preprocessing, open_photo, preprocess, upright
from train.channels import Photo
from train.distributed import ALONE, World

Pixels = npt.NDArray[np.uint8]

# RandomResizedCrop: shares of the photo's area and width-to-height ratios. torchvision's smallest share, 0.08, often
# shows none of what the photo is of.
_CROP_AREA: Final = (0.35, 1.0)
_CROP_RATIO: Final = (3 / 4, 4 / 3)
# torch's cross-entropy leaves this label out.
FILLING: Final = -100


class TrainingPhotos(Dataset[Any]):
    """Augmented photos. An item is asked for by (epoch, index, real): its randomness depends on seed, epoch and index.

    An item that is not `real` fills a batch up and has the label `FILLING`, which counts for nothing.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        spec: Preprocessing,
        *,
        seed: int,
        flip: bool,
        randaugment: int = 0,
        first: int = 0,
    ) -> None:
        self.photos = photos
        self.spec = spec
        self.seed = seed
        self.flip = flip
        self.randaugment = randaugment
        self.first = first

    def __getitem__(self, key: tuple[int, int, bool]) -> tuple[Pixels, int]:
        epoch, index, real = key
        photo = self.photos[index]
        rng = np.random.default_rng((self.seed, epoch, self.first + index))
        pixels = augment(photo.path.read_bytes(), self.spec, rng, flip=self.flip, randaugment=self.randaugment)
        return pixels, photo.label if real else FILLING


class EvaluationPhotos(Dataset[Any]):
    """Photos as serving sees them."""

    def __init__(self, photos: Sequence[Photo], spec: Preprocessing) -> None:
        self.photos = photos
        self.spec = spec

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Float32Array, int]:
        photo = self.photos[index]
        return preprocess(photo.path.read_bytes(), self.spec), photo.label


def augment(data: bytes, spec: Preprocessing, rng: np.random.Generator, *, flip: bool, randaugment: int = 0) -> Pixels:
    """A random crop of the photo, resized in one step, perhaps mirrored and changed: (crop_size, crop_size, 3)."""
    # Half as many pixels again as the network sees: a crop of a third of the area is hardly magnified.
    photo = open_photo(data, min_side=round(spec.crop_size * 1.5))
    size = (spec.crop_size, spec.crop_size)
    crop = photo.resize(size, Image.Resampling.BILINEAR, box=_random_box(*photo.size, rng))
    crop.info = photo.info
    crop = upright(crop).convert("RGB")
    if flip and rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if randaugment:
        crop = _changed(crop, randaugment, rng)
    return np.array(crop)  # torch wants memory that it may write to


def _changed(photo: Image.Image, magnitude: int, rng: np.random.Generator) -> Image.Image:
    # torchvision draws from torch's global generator: seed it for this photo, and leave it as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63)))
        changed: Image.Image = RandAugment(num_ops=2, magnitude=magnitude)(photo)
    return changed


def _random_box(width: int, height: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """As torchvision's RandomResizedCrop.get_params, in fractions of a pixel."""
    for _ in range(10):
        ratio = np.exp(rng.uniform(np.log(_CROP_RATIO[0]), np.log(_CROP_RATIO[1])))
        area = width * height * rng.uniform(*_CROP_AREA)
        crop_width, crop_height = float(np.sqrt(area * ratio)), float(np.sqrt(area / ratio))
        if crop_width <= width and crop_height <= height:
            left, top = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
            return left, top, left + crop_width, top + crop_height
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


class Normaliser:
    """uint8 (batch, height, width, 3) or float32 (batch, 3, height, width) -> channels-last input on the device."""

    def __init__(self, spec: Preprocessing, device: torch.device) -> None:
        std = torch.tensor(spec.std, device=device)
        self._scale = 1 / (255 * std)
        self._offset = -torch.tensor(spec.mean, device=device) / std
        self._device = device

    def __call__(self, batch: Tensor) -> Tensor:
        batch = batch.to(self._device, non_blocking=True)
        if batch.dtype == torch.uint8:
            # A permuted (batch, height, width, 3) is channels_last as it lies: no copy.
            return (batch.float() * self._scale + self._offset).permute(0, 3, 1, 2)
        return batch.contiguous(memory_format=torch.channels_last)


class TrainingBatches(Sampler[list[tuple[int, int, bool]]]):
    """Keys of an epoch's batches for one process; over all processes every photo comes once.

    Where all processes see the same photos (`shards` is None), an order drawn from (seed, epoch) is cut into steps,
    and each step into a part for each process. Where each has photos of its own (`shards`: how many, by rank), each
    cuts its own. Sizes differ by one photo at most between steps. Set `epoch` (and `first_step`, to go on in the
    middle) before each pass.
    """

    def __init__(
        self, count: int, *, batch_size: int, seed: int, world: World = ALONE, shards: Sequence[int] | None = None
    ) -> None:
        self.seed = seed
        self.world = world
        self.shards = shards
        self.total = sum(shards) if shards else count
        self.epoch = 0
        self.first_step = 0
        # No batch of one photo in a process: BatchNorm cannot train on it.
        wanted = -(-self.total // (batch_size * world.size))
        self.steps = min(wanted, max(1, self.total // (2 * world.size)))

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int, bool]]]:
        for part in self._parts()[self.first_step :]:
            # A process without a photo in this step takes part with one that does not count.
            real = len(part) > 0
            yield [(self.epoch, int(index), real) for index in (part if real else [0])]

    def _parts(self) -> list[npt.NDArray[np.int64]]:
        rank, size = self.world.rank, self.world.size
        if self.shards:
            order = np.random.default_rng((self.seed, self.epoch, rank, 1)).permutation(self.shards[rank])
            return np.array_split(order, self.steps)
        order = np.random.default_rng((self.seed, self.epoch, self.total)).permutation(self.total)
        return [np.array_split(step, size)[rank] for step in np.array_split(order, self.steps)]

    def size_of(self, step: int) -> int:
        """Photos of a step over all processes."""
        # numpy.array_split gives the first `count % steps` parts one more.
        return sum(count // self.steps + (step < count % self.steps) for count in (self.shards or [self.total]))


def training_loader(
    dataset: TrainingPhotos, batches: TrainingBatches, *, workers: int, pin_memory: bool
) -> DataLoader[tuple[Tensor, Tensor]]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_parent,
    )


def evaluation_loader(dataset: EvaluationPhotos, *, batch_size: int, workers: int) -> DataLoader[tuple[Tensor, Tensor]]:
    return DataLoader(dataset, batch_size=batch_size, num_workers=workers, worker_init_fn=_leave_signals_to_the_parent)


def _leave_signals_to_the_parent(worker: int) -> None:
    # A ^C, and what `timeout` or a supervisor sends, goes to the whole process group: a loader that ends at it takes
    # the job down before there is time to save. DataLoader's own terminate() must work on, so nothing is ignored.
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
