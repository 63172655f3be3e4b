"""The recipe: what a step is made of, when training ends, and which weights are kept."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from container.contract import SageMakerPaths
from container.errors import ConfigError, TrainingError
from container.preprocessing import Preprocessing
from tests.resnets import one_thread
from tests.training import write_digits
from train.channels import Channels, list_photos, split_validation
from train.config import TrainConfig
from train.data import _random_box
from train.distributed import ALONE
from train.features import Features, Reading
from train.head import _HeadFit, answers, fit_head
from train.job import Job
from train.loop import Trainer
from train.model import build_resnet
from train.outcome import Epoch, Outcome
from train.predictions import Predictions
from train.progress import print_epoch
from train.recipe import _cpu_computes_bfloat16, autocast_type, clip_gradients
from train.run import setting_of
from train.sets import JobSets

CONFIG = TrainConfig(
    architecture="resnet18", pretrained=False, image_size=32, batch_size=8, workers=0, precision="float32"
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def trainer(folder: Path, *, class_weights: Sequence[float] = (1, 1, 1), **changes: Any) -> Trainer:
    """Of a small network, on six photos."""
    photos = list_photos(Channels(training=write_digits(folder / "training", per_class=3)))
    work = Job(
        paths=SageMakerPaths(folder),
        config=dataclasses.replace(CONFIG, **changes),
        world=ALONE,
        sets=JobSets(photos=split_validation(photos, seed=0), world=ALONE),
        spec=Preprocessing.for_image_size(32),
    )
    torch.manual_seed(0)
    return Trainer(build_resnet("resnet18", 3), setting_of(work, torch.tensor(class_weights, dtype=torch.float32)))


def validated(found: Trainer, accuracies: Sequence[float]) -> list[Tensor]:
    """Let each validation find the next accuracy, of ten photos; what the heads were is collected in the answer."""
    heads: list[Tensor] = []
    left = iter(accuracies)

    def validate(model: nn.Module) -> Predictions:
        heads.append(model.state_dict()["fc.weight"].clone())
        right = np.arange(10) < round(10 * next(left))
        return Predictions(np.stack([right, ~right], 1).astype(np.float32), np.zeros(10, np.int64))

    found.setting = dataclasses.replace(found.setting, validate=validate)
    return heads


def test_training_ends_where_patience_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = trainer(tmp_path, epochs=9, patience=2)
    validated(work, [0.2, 0.5, 0.5, 0.4, 0.9])
    outcome = work.fit()
    assert [epoch.validation_accuracy for epoch in outcome.epochs] == [0.2, 0.5, 0.5, 0.4]
    output = capsys.readouterr().out
    assert "no better validation for 2 epochs: training ends" in output
    assert len(re.findall(r"\d+% of it waiting for data", output)) == 4


def test_the_best_weights_are_kept_rather_than_the_last(tmp_path: Path) -> None:
    work = trainer(tmp_path, epochs=3, patience=0)
    heads = validated(work, [0.5, 0.9, 0.1])
    outcome = work.fit()
    assert outcome.best is not None
    assert outcome.best.number == 2
    assert outcome.found is not None
    assert outcome.found.accuracy == 0.9
    assert torch.equal(outcome.state["fc.weight"], heads[1])
    assert not torch.equal(heads[1], heads[2])


def test_an_epoch_without_a_step_that_counts_has_no_figures_and_a_job_of_such_alone_has_no_artifact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """float16 begins with a scale that is found by skipping steps, and a short job may skip them all."""
    work = trainer(tmp_path, epochs=4, precision="float16")
    work.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**90)
    with pytest.raises(TrainingError, match=r"not a number in any of the 4 step\(s\).*try precision=float32"):
        work.fit()
    work = trainer(tmp_path / "more", epochs=4, precision="float16")
    work.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**90, backoff_factor=2.0**-45)
    outcome = work.fit()
    assert [epoch.number for epoch in outcome.epochs] == [3, 4]
    output = capsys.readouterr().out
    assert output.count("does not count: no step's gradients were numbers") == 4 + 2
    assert "nan" not in output


def test_weights_whose_answers_are_no_numbers_end_a_job_at_once(tmp_path: Path) -> None:
    work = trainer(tmp_path, epochs=4, precision="float16")
    model = build_resnet("resnet18", 3)
    nn.init.constant_(model.fc.bias, torch.nan)
    with pytest.raises(TrainingError, match="not a number in the validation of epoch 1"):
        Trainer(model, work.setting).fit()


def test_a_head_alone_ends_where_patience_does_and_is_the_best_of_its_epochs() -> None:
    """What it learns is wrong for validation, so that its first epoch is the best."""
    torch.manual_seed(0)
    values, labels = torch.randn(24, 512), torch.arange(24) % 3
    training, validation = Features(values, labels), Features(values, (labels + 1) % 3)
    config = dataclasses.replace(CONFIG, epochs=20, patience=3)
    model = build_resnet("resnet18", 3)
    outcome = fit_head(model, training, validation, config, weights=torch.ones(3), world=ALONE)
    assert outcome.best is not None
    assert (outcome.best.number, len(outcome.epochs)) == (1, 4)
    model.load_state_dict(outcome.state)
    assert outcome.found is not None
    np.testing.assert_array_equal(answers(model.fc, validation).logits, outcome.found.logits)


def test_a_heads_first_epoch_counts_the_reading_of_the_photos_and_the_others_read_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    features = Features(torch.randn(24, 512), torch.arange(24) % 3, Reading(photos=24, seconds=8.0, waited=2.0))
    config = dataclasses.replace(CONFIG, epochs=2)
    model = build_resnet("resnet18", 3)
    first, second = fit_head(model, features, features, config, weights=torch.ones(3), world=ALONE).epochs
    assert first.seconds > 8
    assert first.images_per_second * first.seconds == pytest.approx(24)
    assert first.waiting * first.seconds == pytest.approx(2)
    assert (second.images_per_second, second.waiting) == (0, 0)
    output = capsys.readouterr().out
    assert (output.count(" images/s, "), output.count("train:images_per_second=")) == (1, 1)


def norm_of_gradients(model: nn.Module) -> float:
    return float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())


def test_a_steps_gradients_are_clipped_to_a_norm_of_one(tmp_path: Path) -> None:
    work = trainer(tmp_path, class_weights=(1000, 1000, 1000))
    work._step(torch.randn(6, 3, 32, 32), torch.arange(6) % 3)
    assert norm_of_gradients(work.model) == pytest.approx(1, rel=1e-3)
    small = nn.Linear(2, 1)
    (small(torch.full((1, 2), 0.1)) * 0.1).sum().backward()
    before = norm_of_gradients(small)
    assert clip_gradients(small) == pytest.approx(before)
    assert norm_of_gradients(small) == pytest.approx(before)


def test_a_heads_gradients_are_clipped_as_those_of_all_layers_are() -> None:
    head = nn.Linear(8, 3)
    features = Features(100 * torch.randn(24, 8), torch.arange(24) % 3)
    _HeadFit(head, features, CONFIG, weights=torch.ones(3), epochs=1).epoch(1)
    assert norm_of_gradients(head) == pytest.approx(1, rel=1e-3)


def test_a_steps_loss_is_torchs_with_smoothed_labels_and_weighted_classes(tmp_path: Path) -> None:
    weights = (1e-4, 2e-4, 3e-4)  # So small that no gradient is clipped.
    work = trainer(tmp_path, class_weights=weights, label_smoothing=0.3)
    photos, labels = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 0, 2])
    model = copy.deepcopy(work.model).train()
    loss = functional.cross_entropy(
        model(photos), labels, weight=torch.tensor(weights), label_smoothing=0.3, reduction="sum"
    )
    (loss / 6).backward()  # type: ignore[no-untyped-call]
    work._step(photos, labels)
    assert work.sums[1].item() == pytest.approx(loss.item(), rel=1e-4)
    found, expected = (dict(network.named_parameters())["fc.weight"].grad for network in (work.model, model))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-9)


def test_crops_show_at_least_a_third_of_the_photo() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([_random_box(120, 90, rng) for _ in range(500)])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (120 * 90)
    assert 0.35 <= areas.min() < 0.37
    assert 0.9 < areas.max() <= 1 + 1e-9


@pytest.mark.parametrize(
    ("flags", "computes"), [("fpu avx512f avx512_bf16", True), ("amx_bf16 amx_tile", True), ("fpu avx2 avx512f", False)]
)
def test_a_processor_computes_bfloat16_where_it_says_so(tmp_path: Path, flags: str, computes: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    assert not _cpu_computes_bfloat16(cpuinfo)
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert _cpu_computes_bfloat16(cpuinfo) == computes


def test_the_precision_that_is_named_is_the_one_that_is_used() -> None:
    cpu = torch.device("cpu")
    types = [autocast_type(name, cpu) for name in ("float32", "bfloat16", "float16")]
    assert types == [None, torch.bfloat16, torch.float16]
    assert autocast_type("auto", cpu) == (torch.bfloat16 if _cpu_computes_bfloat16() else None)


@pytest.mark.parametrize("strategy", ["head", "gradual"])
def test_layers_of_noise_are_not_frozen(strategy: str) -> None:
    with pytest.raises(ConfigError, match=rf"strategy={strategy} needs pretrained weights.*strategy=full"):
        TrainConfig.from_hyperparameters({"strategy": strategy, "pretrained": "false"})


@pytest.mark.parametrize(("share", "end"), [(0.254, "2.0 s, 25% of it waiting for data\n"), (0.0, "2.0 s\n")])
def test_an_epochs_line_says_how_long_it_waited_if_it_read_photos(
    share: float, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    epoch = Epoch(1, 1.0, 0.5, 1.0, 0.5, 3.0, 2.0, share)
    print_epoch(epoch, Outcome(best=epoch), config=CONFIG)
    assert capsys.readouterr().out.partition("train:")[0].endswith(end)
