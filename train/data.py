"""Photos on disk -> batches.

Training batches are uint8 pixels, (batch, height, width, 3), augmented; `Normaliser` turns them into the network's
input on the device: a quarter of float32's bytes to hand over between processes. Evaluation batches are what serving
sees, float32 (batch, 3, height, width), made by container.preprocessing.preprocess.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from container.errors import PhotoError
from container.preprocessing import Float32Array, Preprocessing, open_photo, preprocess, upright
from train.channels import Photo
from train.stop import STOP
from train.workers import usable_cores

Pixels = npt.NDArray[np.uint8]

# RandomResizedCrop: shares of the photo's area and width-to-height ratios. torchvision's smallest share, 0.08, often
# shows none of what the photo is of.
_CROP_AREA: Final = (0.35, 1.0)
_CROP_RATIO: Final = (3 / 4, 4 / 3)


class TrainingPhotos(Dataset[Any]):
    """Augmented photos. An item is asked for by (epoch, index): its randomness depends on those and the seed alone."""

    def __init__(self, photos: Sequence[Photo], spec: Preprocessing, *, seed: int, flip: bool) -> None:
        self.photos = photos
        self.spec = spec
        self.seed = seed
        self.flip = flip

    def __getitem__(self, key: tuple[int, int]) -> tuple[Pixels, int]:
        epoch, index = key
        photo = self.photos[index]
        rng = np.random.default_rng((self.seed, epoch, index))
        return augment(photo.path.read_bytes(), self.spec, rng, flip=self.flip), photo.label


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


def augment(data: bytes, spec: Preprocessing, rng: np.random.Generator, *, flip: bool) -> Pixels:
    """A random crop of the photo, resized in one step and perhaps mirrored: (crop_size, crop_size, 3)."""
    # Half as many pixels again as the network sees: a crop of a third of the area is hardly magnified.
    photo = open_photo(data, min_side=round(spec.crop_size * 1.5))
    size = (spec.crop_size, spec.crop_size)
    crop = photo.resize(size, Image.Resampling.BILINEAR, box=_random_box(*photo.size, rng))
    crop.info = photo.info
    crop = upright(crop).convert("RGB")
    if flip and rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(crop)  # torch wants memory that it may write to


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


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """Keys of an epoch's batches, in an order drawn from (seed, epoch); batches differ by one photo at most.

    Set `epoch` (and `first_step`, to go on in the middle) before each pass.
    """

    def __init__(self, count: int, *, batch_size: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self.epoch = 0
        self.first_step = 0
        # No batch of one photo: BatchNorm cannot train on it.
        self.steps = min(-(-count // batch_size), max(1, count // 2))

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch, self.count)).permutation(self.count)
        for batch in np.array_split(order, self.steps)[self.first_step :]:
            yield [(self.epoch, int(index)) for index in batch]


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
    # Workers inherit the handlers of `train`: they must neither end at a ^C nor outlive DataLoader's terminate().
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def find_unreadable(paths: Sequence[Path]) -> Mapping[Path, str]:
    """Decode every photo at a small scale; return why those that cannot be read cannot.

    The small scale is cheap (an eighth of the size for JPEGs) and still reads the file to its end.
    """

    def fault(path: Path) -> str | None:
        STOP.check()
        try:
            open_photo(path.read_bytes(), min_side=1)
        except (PhotoError, OSError) as error:
            return str(error)
        return None

    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        faults = pool.map(fault, paths)
        return {path: reason for path, reason in zip(paths, faults, strict=True) if reason}
