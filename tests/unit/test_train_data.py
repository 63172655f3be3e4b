"""Batches: what is random, and what is not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from container.preprocessing import Preprocessing, normalise, preprocess
from tests.support import encoded, odd_photos, picture
from train.channels import Photo
from train.data import (
    EvaluationPhotos,
    Normaliser,
    TrainingBatches,
    TrainingPhotos,
    augment,
    evaluation_loader,
    training_loader,
)
from train.run import keep_to_quota
from train.workers import threads_within_quota, usable_cores, worker_count

SPEC = Preprocessing.for_image_size(32)


@pytest.fixture
def photos(tmp_path: Path) -> list[Photo]:
    for name, data in odd_photos().items():
        (tmp_path / name).write_bytes(data)
    return [Photo(path, index % 2) for index, path in enumerate(sorted(tmp_path.iterdir()))]


@pytest.mark.parametrize("name", odd_photos())
def test_every_kind_of_photo_can_be_augmented(name: str) -> None:
    pixels = augment(odd_photos()[name], SPEC, np.random.default_rng(0), flip=True)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8


def test_a_crop_depends_on_seed_epoch_and_index_alone(photos: list[Photo]) -> None:
    dataset = TrainingPhotos(photos, SPEC, seed=3, flip=True, randaugment=9)
    generator = torch.get_rng_state()
    first = dataset[(2, 5, True)][0]
    dataset[(1, 4, True)]
    np.testing.assert_array_equal(first, dataset[(2, 5, True)][0])
    others = [dataset[(3, 5, True)][0], TrainingPhotos(photos, SPEC, seed=4, flip=True, randaugment=9)[(2, 5, True)][0]]
    assert all(not np.array_equal(first, other) for other in others)
    assert torch.equal(torch.get_rng_state(), generator)


def test_without_flip_no_photo_is_mirrored() -> None:
    brighter_to_the_right = encoded(Image.fromarray(np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (64, 1))))

    def rising(flip: bool) -> int:
        crops = [augment(brighter_to_the_right, SPEC, np.random.default_rng(seed), flip=flip) for seed in range(20)]
        return sum(bool(crop[0, -1, 0] > crop[0, 0, 0]) for crop in crops)

    assert rising(flip=False) == 20
    assert 0 < rising(flip=True) < 20


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(10, 4, {3, 4}), (3, 2, {3}), (5, 2, {2, 3}), (2, 64, {2})])
def test_batches_hold_every_photo_once_and_are_of_even_size(count: int, batch_size: int, sizes: set[int]) -> None:
    batches = TrainingBatches(count, batch_size=batch_size, seed=0)
    found = list(batches)
    assert {len(batch) for batch in found} == sizes
    assert len(found) == len(batches)
    assert sorted(index for batch in found for _, index, _ in batch) == list(range(count))


def test_the_order_changes_with_the_epoch_and_can_be_entered_in_the_middle() -> None:
    batches = TrainingBatches(40, batch_size=8, seed=0)
    first = [[index for _, index, _ in batch] for batch in batches]
    batches.epoch = 1
    second = [[index for _, index, _ in batch] for batch in batches]
    assert first != second
    batches.first_step = 3
    assert [[index for _, index, _ in batch] for batch in batches] == second[3:]


def test_loader_processes_change_nothing(photos: list[Photo]) -> None:
    def run(workers: int) -> list[torch.Tensor]:
        batches = TrainingBatches(len(photos), batch_size=5, seed=1)
        loader = training_loader(
            TrainingPhotos(photos, SPEC, seed=1, flip=True, randaugment=9), batches, workers=workers, pin_memory=False
        )
        return [batch for batch, _ in loader]

    for one, two in zip(run(0), run(2), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_evaluation_sees_what_serving_sees(photos: list[Photo]) -> None:
    loader = evaluation_loader(EvaluationPhotos(photos, SPEC), batch_size=5, workers=0)
    seen = torch.cat([batch for batch, _ in loader]).numpy()
    served = np.stack([preprocess(photo.path.read_bytes(), SPEC) for photo in photos])
    np.testing.assert_array_equal(seen, served)


def test_training_is_normalised_as_evaluation_is() -> None:
    pixels = np.asarray(picture(32, 32))
    ours = Normaliser(SPEC, torch.device("cpu"))(torch.from_numpy(pixels.copy())[None])
    np.testing.assert_allclose(ours[0].numpy(), normalise(picture(32, 32), SPEC), atol=1e-5)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_engines_keep_to_a_containers_quota(tmp_path: Path) -> None:
    """Without one they choose for themselves, as they did when results were first compared; OMP_NUM_THREADS wins."""
    cgroup, before = tmp_path / "sys/fs/cgroup/a", torch.get_num_threads()
    cgroup.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    assert threads_within_quota(tmp_path) == 0
    (cgroup / "cpu.max").write_text("110000 100000\n")
    assert usable_cores(tmp_path) == 1
    try:
        torch.set_num_threads(2)
        keep_to_quota({"OMP_NUM_THREADS": "2"}, tmp_path)
        assert torch.get_num_threads() == 2
        keep_to_quota({}, tmp_path)
        assert torch.get_num_threads() == (1 if len(os.sched_getaffinity(0)) > 1 else 2)
    finally:
        torch.set_num_threads(before)


def test_the_advised_shared_memory_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert worker_count(4, batch_bytes=free // 40, cuda=False, processes=2, shared_memory=tmp_path) < 4
    advised = int(capsys.readouterr().out.split("--shm-size ")[1].removesuffix("g\n")) * 2**30
    assert 0.8 * advised >= 4 * 2 * 6 * (free // 40)
    assert 0.8 * (advised - 2**30) < 4 * 2 * 6 * (free // 40)


def test_loader_processes_are_bounded_by_shared_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert worker_count(3, batch_bytes=1000, cuda=False) == 3
    assert worker_count(0, batch_bytes=10**15, cuda=False) == 0
    assert 1 <= worker_count(-1, batch_bytes=1000, cuda=False) <= usable_cores()
    assert capsys.readouterr().out == ""
    assert worker_count(2, batch_bytes=10**15, cuda=False) == 0
    assert "--shm-size" in capsys.readouterr().out
    assert worker_count(2, batch_bytes=1, cuda=False, shared_memory=tmp_path / "absent") == 0
