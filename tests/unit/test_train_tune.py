"""The search: what a trial tells it, and what becomes of a study that cannot be gone on with."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from container.contract import VALIDATION_ACCURACY, VALIDATION_BEST_ACCURACY, SageMakerPaths
from container.errors import ConfigError, UserError
from train.tune import _train, search


def train_that_prints(folder: Path, accuracies: list[float]) -> None:
    """A program `train` in the folder, found before ours by a process that works there."""
    best = [max(accuracies[: count + 1]) for count in range(len(accuracies))]
    lines = [
        metric.line(value)
        for pair in zip(accuracies, best, strict=True)
        for metric, value in zip((VALIDATION_ACCURACY, VALIDATION_BEST_ACCURACY), pair, strict=True)
    ]
    (folder / "train.py").write_text(f"print({chr(10).join(lines)!r})")


def test_the_search_is_told_the_figure_that_it_chooses_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch that is worse than those before it ends no trial whose best is kept."""
    monkeypatch.chdir(tmp_path)
    train_that_prints(tmp_path, [0.5, 0.25, 0.75, 0.7])
    study = optuna.create_study(direction="maximize")
    trial = study.ask()
    assert _train(trial, SageMakerPaths(tmp_path), {}) == (0.75, False)
    assert study.trials[0].intermediate_values == {1: 0.5, 2: 0.5, 3: 0.75, 4: 0.75}


@pytest.mark.parametrize("content", ["a file", "a folder"])
def test_what_is_no_database_is_named_with_what_to_do(tmp_path: Path, content: str) -> None:
    paths = SageMakerPaths(tmp_path)
    database = paths.output_data / "tuning.db"
    if content == "a folder":
        database.mkdir(parents=True)
    else:
        paths.output_data.mkdir(parents=True)
        database.write_text("no database " * 100)
    with pytest.raises(UserError, match=rf"the search in {database} cannot go on \((file|unable).*remove that file"):
        search(paths, {}, trials=1)


def test_a_search_over_other_values_is_named_with_what_to_do(tmp_path: Path) -> None:
    paths = SageMakerPaths(tmp_path)
    paths.output_data.mkdir(parents=True)
    database = paths.output_data / "tuning.db"
    study = optuna.create_study(study_name="kennel", storage=f"sqlite:///{database}", direction="maximize")
    study.ask().suggest_categorical("batch_size", ["1", "2"])
    with pytest.raises(ConfigError, match=rf"{database} holds a search over other values.*remove that file"):
        search(paths, {}, trials=1)


def test_a_disk_without_room_for_a_trial_is_named_with_what_to_do(tmp_path: Path) -> None:
    paths = SageMakerPaths(tmp_path)
    paths.output_data.mkdir(parents=True)
    (paths.output_data / "trials").write_text("a file is in the way")
    with pytest.raises(UserError, match=r"cannot go on \(.*Not a directory.*see that the disk has room"):
        search(paths, {}, trials=1)
