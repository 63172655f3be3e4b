"""The search: what a trial tells it, and what becomes of a study that cannot be gone on with."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from container.contract import VALIDATION_ACCURACY, VALIDATION_BEST_ACCURACY, SageMakerPaths
from container.errors import ArtifactError, ConfigError, TrainingError, UserError
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


def search_among(folder: Path, *ends: str | float | None) -> None:
    """Search with a program `train` whose trials end so: with a failure file, an accuracy, or as if killed."""
    lines = [VALIDATION_BEST_ACCURACY.line(end) if isinstance(end, float) else None for end in ends]
    (folder / "train.py").write_text(
        f"""
import os, sys
from pathlib import Path

base = Path(os.environ["SAGEMAKER_BASE_DIR"])
end, line = list(zip({ends!r}, {lines!r}))[int(base.name)]
if line:
    print(line)
elif end:
    (base / "output").mkdir()
    (base / "output" / "failure").write_text(end.format(data=base / "input" / "data"))
sys.exit(not line)
"""
    )
    paths = SageMakerPaths(folder)
    paths.output_data.mkdir(parents=True, exist_ok=True)
    search(paths, {}, trials=len(ends))


def failures(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if ": failed" in line]


def test_a_search_whose_trials_fail_alike_ends_with_their_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Channels are named by the folders that the user knows, not by a trial's links to them."""
    monkeypatch.chdir(tmp_path)
    empty, reason = "{data}/training is empty\n\na traceback", f"{tmp_path}/input/data/training is empty"
    with pytest.raises(TrainingError, match=rf"^two trials failed with the same sentence .*: {reason}$"):
        search_among(tmp_path, "another", empty, empty, empty)
    assert failures(capsys.readouterr().out) == [
        "trial 0: failed: another",
        f"trial 1: failed: {reason}",
        f"trial 2: failed: {reason}",
    ]


def test_a_search_that_ended_so_goes_on_when_it_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its trials met may be mended; the last reason is told at the end."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingError, match=r"^two trials failed with the same sentence"):
        search_among(tmp_path, "one", "one", "one", "two")
    with pytest.raises(TrainingError, match=r"^no trial came to its end, .*; the last that failed says: two$"):
        search_among(tmp_path, "one", "one", "one", "two")


def test_trials_may_fail_alike_where_another_has_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError):  # The one that completed left none to hand over.
        search_among(tmp_path, 0.5, "one", "one", "one")
    assert failures(capsys.readouterr().out) == [f"trial {number}: failed: one" for number in (1, 2, 3)]


def test_a_trial_that_was_killed_is_named_by_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed for want of memory, say: the next one's batch may be smaller."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingError, match=r"^no trial came to its end, .*/trials/2/log ends"):
        search_among(tmp_path, None, None, None)
    log = tmp_path / "output/data/trials/0/log"
    assert failures(capsys.readouterr().out)[0] == f"trial 0: failed: it left no reason; {log} ends where it did"


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
