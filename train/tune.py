"""The program `tune`: a search for hyperparameters with Optuna, on one machine, over the ranges that `train` ships.

    tune [--trials 20] [--name value …]

Values that are given are the same in every trial; the other tunable ones are searched for. Each trial is a `train` of
its own in output/data/trials; a trial that falls behind the median is ended early. Where two fail alike before any has
completed, the search ends with their reason. It goes on where an earlier one in the same folder stopped, and refuses to
where that had other values or photos. What frozen layers answer is computed once for all trials (of the same batch
size). The best trial's artifact and report are left where `train` leaves its own.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.exceptions import OptunaError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from container.artifact import find_artifact, load_manifest, save_artifact
from container.contract import VALIDATION_BEST_ACCURACY, SageMakerPaths
from container.errors import ConfigError, KennelError, TrainingError, UserError
from train.config import TrainConfig, canonical_name, options, read_command_line, read_hyperparameters
from train.failure import failure_text, write_failure
from train.folders import SHARED_FEATURES, discard_results, make_writable
from train.hyperparameters import Option, Range, parse
from train.stop import STOP

_DEFAULT_TRIALS: Final = "20"
_DATABASE: Final = "tuning.db"
# Of a trial that is run because an earlier run of the search ended in the middle of another: that one's number.
_INSTEAD_OF: Final = "instead_of"
# Of a study: the values that it does not search for, and its data.
_SETTINGS: Final = "settings"


def main(arguments: Sequence[str]) -> int:
    """Return the exit code: 0 with the best artifact in the model folder."""
    paths = SageMakerPaths.from_env()
    try:
        STOP.install()
        STOP.hold()
        given = read_command_line(arguments)
        trials = _trials(given.pop("trials", _DEFAULT_TRIALS))
        fixed = _fixed({**read_hyperparameters(paths.hyperparameters), **given})
        make_writable(paths.model)
        make_writable(paths.output_data)
        paths.failure.unlink(missing_ok=True)
        best = search(paths, fixed, trials=trials)
    except KennelError as error:
        print(f"error: {error}", file=sys.stderr)
        write_failure(paths.failure, failure_text(error))
        return 1
    print(f"best: {json.dumps(best)}", flush=True)
    return 0


def _trials(text: str) -> int:
    try:
        return int(parse(text, int, Option(help="", minimum=1)))
    except ValueError as error:
        raise ConfigError(f"option 'trials' {error}") from error


def _fixed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The checked values of the hyperparameters that are given. Raises ConfigError."""
    values = TrainConfig.from_hyperparameters(given).to_json()
    names = {canonical_name(name) for name in given}
    return {name: value for name, value in values.items() if name in names}


def search(paths: SageMakerPaths, fixed: Mapping[str, Any], *, trials: int) -> dict[str, Any]:
    """Run trials until that many have ended, and return the best one's description.

    Those of earlier runs count, and those that failed or were ended early. Raises TrainingError where none completes.
    """
    folder = paths.output_data
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _storage(folder / _DATABASE):
        study = _open_study(folder, {**fixed, "data": _data_digest(paths.data)}, seed=fixed.get("seed", 0))
        reasons: set[str | None] = set()  # Of this run's failures: what an earlier one met may be mended.
        while _finished(study) < trials and not STOP.requested():
            reason = _one_trial(study, paths, fixed)
            if reason and reason in reasons and not _completed(study):
                raise TrainingError(
                    "two trials failed with the same sentence before any came to its end, so no more are run; their "
                    f"logs lie in {folder / 'trials'}: {reason}"
                )
            reasons.add(reason)
        return _choose(study, paths)


@contextmanager
def _storage(database: Path) -> Iterator[None]:
    """Translate what the study's database and the disk raise. Raises UserError."""
    try:
        yield
    except (OptunaError, SQLAlchemyError, OSError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise UserError(
            f"the search in {database} cannot go on ({reason}); see that the disk has room, or remove that file to "
            "begin anew"
        ) from error


def _choose(study: optuna.Study, paths: SageMakerPaths) -> dict[str, Any]:
    """Leave the best trial's artifact and the search's description; return the best trial's."""
    folder = paths.output_data
    if not _completed(study):
        failed = study.get_trials(states=[TrialState.FAIL])
        last = f"; the last that failed says: {_reason(paths, failed[-1].number)}" if failed else ""
        raise TrainingError(
            f"no trial came to its end, so there is nothing to choose from; their logs lie in {folder / 'trials'}{last}"
        )
    best = {"trial": study.best_trial.number, "value": study.best_value, "hyperparameters": study.best_params}
    (folder / "tuning.json").write_text(json.dumps({"best": best, "trials": _all(study)}, indent=2), encoding="utf-8")
    _hand_over(_trial_paths(paths, study.best_trial.number), paths)
    return best


def _data_digest(folder: Path) -> str:
    """Of the channels' files, by name and size."""
    paths = (Path(root, name) for root, _, names in os.walk(folder, followlinks=True) for name in names)
    files = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in paths if path.is_file())
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]


def _open_study(folder: Path, settings: Mapping[str, Any], *, seed: int) -> optuna.Study:
    """The study of this folder; trials that an earlier run was ended in are queued to be run again.

    Raises ConfigError where it was begun with other settings: its trials would not compare with those to come.
    """
    study = optuna.create_study(
        study_name="kennel",
        storage=f"sqlite:///{folder / _DATABASE}",
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=1),
        load_if_exists=True,
    )
    begun = study.user_attrs.get(_SETTINGS, settings)
    other = [name for name in sorted({*begun, *settings}) if begun.get(name) != settings.get(name)]
    if other:
        raise ConfigError(
            f"{folder / _DATABASE} holds a search with {_named(begun, other)}; this one has "
            f"{_named(settings, other)}: give the same values and data, or remove that file to begin anew"
        )
    study.set_user_attr(_SETTINGS, dict(settings))
    # A sampler begins its random draws anew: with the same seed, a search that goes on would repeat itself.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    replaced = {trial.user_attrs.get(_INSTEAD_OF) for trial in study.trials}
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        if trial.number not in replaced:
            study.enqueue_trial(trial.params, user_attrs={_INSTEAD_OF: trial.number})
    return study


def _named(settings: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name}={settings[name]}" if name in settings else f"no {name} given" for name in names)


def _finished(study: optuna.Study) -> int:
    return sum(trial.state.is_finished() for trial in study.trials)


def _completed(study: optuna.Study) -> bool:
    return any(trial.state == TrialState.COMPLETE for trial in study.trials)


def _all(study: optuna.Study) -> list[dict[str, Any]]:
    def state(trial: optuna.trial.FrozenTrial) -> str:
        return "INTERRUPTED" if trial.state == TrialState.RUNNING else trial.state.name

    return [
        {"trial": trial.number, "state": state(trial), "value": trial.value, "hyperparameters": trial.params}
        for trial in study.trials
    ]


def _hand_over(trial: SageMakerPaths, paths: SageMakerPaths) -> None:
    """Leave what a `train` with the best values would have: the artifact, and the report beside it."""
    source = find_artifact(trial.model)
    manifest = load_manifest(source)
    copies = {name: functools.partial(shutil.copyfile, source / name) for name in manifest.files}
    save_artifact(paths.model, manifest, copies)
    discard_results(paths.output_data)
    shutil.copytree(trial.output_data, paths.output_data, dirs_exist_ok=True)


def _one_trial(study: optuna.Study, paths: SageMakerPaths, fixed: Mapping[str, Any]) -> str | None:
    """Run a trial, tell the study what came of it, and return why it failed, if it did."""
    trial = study.ask()
    try:
        values = {**{name: str(value) for name, value in fixed.items()}, **suggest(trial, fixed)}
    except ValueError as error:  # Optuna's, of a study that an image with other ranges began.
        raise ConfigError(
            f"{paths.output_data / _DATABASE} holds a search over other values than this one's ({error}); remove that "
            "file to begin anew"
        ) from error
    print(f"trial {trial.number}: {json.dumps(trial.params)}", flush=True)
    value, pruned = _train(trial, _tree(paths, trial.number), values)
    if STOP.requested():
        return None  # It stays open, and is run again when the search goes on.
    reason = None
    if pruned:
        study.tell(trial, state=TrialState.PRUNED)
        outcome = "ended early"
    elif value is None:
        study.tell(trial, state=TrialState.FAIL)
        reason = _reason(paths, trial.number)
        outcome = f"failed: {reason}"
    else:
        study.tell(trial, value)
        outcome = f"{VALIDATION_BEST_ACCURACY.name} {value:.4f}"
    print(f"trial {trial.number}: {outcome}", flush=True)
    return reason


def _reason(paths: SageMakerPaths, number: int) -> str:
    """The first line of a failed trial's failure file, with the channels' paths for the trial's links to them.

    A trial that was killed has no such file. What is said of it names its log, so that no two of these are alike: the
    next one's batch may fit into memory.
    """
    trial = _trial_paths(paths, number)
    if not trial.failure.is_file():
        return f"it left no reason; {trial.base / 'log'} ends where it did"
    text = trial.failure.read_text(encoding="utf-8", errors="replace")
    return text.partition("\n")[0].replace(str(trial.data), str(paths.data))


def suggest(trial: optuna.Trial, fixed: Mapping[str, Any]) -> dict[str, str]:
    """A value for every tunable hyperparameter that is not fixed."""
    values: dict[str, str] = {}
    for name, (kind, option) in options().items():
        if name in fixed or option.tune is None:
            continue
        if not isinstance(option.tune, Range):
            values[name] = trial.suggest_categorical(name, option.tune)
        elif kind is int:
            values[name] = str(
                trial.suggest_int(name, int(option.tune.low), int(option.tune.high), log=option.tune.log)
            )
        else:
            values[name] = repr(trial.suggest_float(name, option.tune.low, option.tune.high, log=option.tune.log))
    return values


def _trial_paths(paths: SageMakerPaths, number: int) -> SageMakerPaths:
    return SageMakerPaths(paths.output_data / "trials" / str(number))


def _tree(paths: SageMakerPaths, number: int) -> SageMakerPaths:
    """A tree of the trial's own: its data are the real channels, its features those of all trials."""
    tree = _trial_paths(paths, number)
    shutil.rmtree(tree.base, ignore_errors=True)
    tree.config.mkdir(parents=True)
    tree.data.symlink_to(paths.data)
    features = paths.output_data / "trials" / SHARED_FEATURES
    features.mkdir(exist_ok=True)
    (tree.base / SHARED_FEATURES).symlink_to(features)
    if paths.input_data_config.is_file():
        shutil.copy(paths.input_data_config, tree.input_data_config)
    return tree


def _train(trial: optuna.Trial, tree: SageMakerPaths, values: Mapping[str, str]) -> tuple[float | None, bool]:
    """Run `train`; return the objective (None where it failed) and whether the trial was ended early."""
    words = [word for name, value in values.items() for word in (f"--{name}", value)]
    env = {**os.environ, "SAGEMAKER_BASE_DIR": str(tree.base)}
    command = [sys.executable, "-m", "train", *words]
    value, epoch, pruned = None, 0, False
    with (
        (tree.base / "log").open("w", buffering=1) as log,
        subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
        ) as process,
    ):
        threading.Thread(target=_pass_on, args=(process,), daemon=True).start()
        assert process.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
        for line in process.stdout:
            log.write(line)
            if match := re.fullmatch(VALIDATION_BEST_ACCURACY.regex, line.strip()):
                value, epoch = float(match[1]), epoch + 1
                trial.report(value, epoch)
                pruned = pruned or trial.should_prune()
            if pruned:
                process.send_signal(signal.SIGTERM)
    return (value if process.returncode == 0 else None), pruned


def _pass_on(process: subprocess.Popen[str]) -> None:
    """Tell the trial when the search is asked to stop: its next line may be minutes away."""
    while process.poll() is None:
        if STOP.requested():
            process.send_signal(signal.SIGTERM)
            return
        time.sleep(0.2)


def run() -> None:
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
