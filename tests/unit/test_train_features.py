"""What the frozen layers answer: the same from both engines, and kept while it is computed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torchvision.models.resnet import ResNet

from container.preprocessing import Preprocessing
from tests.support import encoded, picture
from train.channels import Photo
from train.distributed import ALONE
from train.features import Features, Shelf, _in_onnxruntime, _in_torch, extract
from train.model import build_resnet

SPEC = Preprocessing.for_image_size(32)


def model(seed: int = 0) -> ResNet:
    torch.manual_seed(seed)
    network = build_resnet("resnet18", 3)
    network.eval()
    return network


@pytest.fixture
def photos(tmp_path: Path) -> list[Photo]:
    """More than two rounds of batches of one."""
    for seed in range(70):
        (tmp_path / f"{seed:02}.png").write_bytes(encoded(picture(40, 36, seed=seed)))
    return [Photo(path, index % 3) for index, path in enumerate(sorted(tmp_path.iterdir()))]


@pytest.fixture
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(folder=tmp_path_factory.mktemp("checkpoints"), role="training")


def run(photos: list[Photo], shelf: Shelf, seed: int = 0) -> Features:
    return extract(model(seed), photos, SPEC, batch_size=1, workers=0, shelf=shelf)


def test_both_engines_answer_alike() -> None:
    network, batch = model(), torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        network.fc = torch.nn.Identity()
        expected = network(batch)
    network = model()
    for backbone in (_in_onnxruntime, _in_torch):
        found = backbone(network, SPEC, ALONE)(batch)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        (torch.nn.Linear(512, 2)(found)).sum().backward()  # A head can learn from it.


def test_a_job_that_is_killed_goes_on_with_the_round_that_it_lacks(
    photos: list[Photo], shelf: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shelf.folder is not None
    whole = run(photos, Shelf())
    assert whole.labels.tolist() == [photo.label for photo in photos]
    run(photos, shelf)
    first, second, third = sorted(shelf.folder.iterdir())
    second.write_bytes(second.read_bytes()[:-9])
    third.rename(third.with_name(f".{third.stem}-0123.tmp"))
    capsys.readouterr()
    again = run(photos, shelf)
    output = capsys.readouterr().out
    assert f"{second.name} is damaged" in output
    assert re.search(
        r"features of 70 photos, 32 of them kept from an earlier run: .* s, \d+% of it waiting for data", output
    )
    assert again.reading.photos == 70 - 32
    assert 0 < again.reading.waited < again.reading.seconds
    assert torch.equal(again.values, whole.values)
    assert torch.equal(again.labels, whole.labels)
    assert first.exists()
    assert len(list(shelf.folder.glob("*-00002-*"))) == 1
    assert not list(shelf.folder.glob(".*")), "what it left half-written goes"


def test_features_that_cannot_be_kept_are_answered_all_the_same(
    photos: list[Photo], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(photos[:8], Shelf(folder=tmp_path / "gone", role="training"))
    assert torch.equal(found.values, run(photos[:8], Shelf()).values)
    assert "cannot be written to" in capsys.readouterr().out


def test_features_of_another_job_are_not_used_and_stay(
    photos: list[Photo], shelf: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shelf.folder is not None
    run(photos[:8], shelf)
    kept = {path: path.read_bytes() for path in shelf.folder.iterdir()}
    other = run(photos[:8], shelf, seed=1)
    assert torch.equal(other.values, run(photos[:8], Shelf(), seed=1).values)
    replaced = [dataclasses.replace(photo, digest="of other bytes") for photo in photos[:8]]
    run(replaced, shelf)
    assert "kept from an earlier run" not in capsys.readouterr().out
    assert len(list(shelf.folder.iterdir())) == 3
    assert {path: path.read_bytes() for path in kept} == kept
