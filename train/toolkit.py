"""SageMaker's training toolkit, the only file that names it: it runs our entry as a framework's training module.

Called bare, `sagemaker_training.trainer.train` (5.1.4) exits 0 without having called the module where a file of
/opt/ml/input/config is missing, exits 0 where the module raises and /opt/ml/output is missing, and exits 0 on
SystemExit. So it is given a tree that is complete, an entry that raises nothing but its own ClientError, and its
exit code is not taken for an answer.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from container.contract import SageMakerPaths
from container.errors import TrainingError
from train.stop import STOP

_MODULE: Final = "SAGEMAKER_TRAINING_MODULE"
_DEFAULT_RESOURCES: Final[Mapping[str, Any]] = {
    "current_host": "algo-1",
    "hosts": ["algo-1"],
    "network_interface_name": "eth0",
}
# What of its own hyperparameters the toolkit heeds when it runs a module.
_TOOLKIT_KEYS: Final = ("sagemaker_region", "sagemaker_s3_output", "sagemaker_job_name")


class _Call:
    """What the toolkit is to call, and how that ended."""

    def __init__(self, entry: Callable[[], None]) -> None:
        self.entry = entry
        self.made = False
        self.error: BaseException | None = None


_calls: list[_Call] = []


def run(entry: Callable[[], None], paths: SageMakerPaths, hyperparameters: Mapping[str, Any]) -> None:
    """Let the toolkit call `entry` in this process; raises what `entry` raised."""
    try:
        with tempfile.TemporaryDirectory(prefix="kennel-") as folder:
            trainer = _import_trainer(complete_tree(Path(folder), paths, hyperparameters))
            call = _call_through(trainer, entry)
    except ImportError as error:
        print(f"sagemaker-training cannot be imported ({error}): training without it", flush=True)
        return entry()
    if call.error is not None:
        raise call.error
    if not call.made:
        STOP.check()
        raise TrainingError("sagemaker-training ended before it called the training program; its log says why")
    return None


def _import_trainer(shadow: Path) -> Any:
    # The toolkit reads SAGEMAKER_BASE_DIR when it is imported, and makes a folder `code` there.
    with _environment({"SAGEMAKER_BASE_DIR": str(shadow)}):
        return importlib.import_module("sagemaker_training.trainer")


def _call_through(trainer: Any, entry: Callable[[], None]) -> _Call:
    call = _Call(entry)
    _calls.append(call)
    with _environment({_MODULE: f"{__name__}:_entry"}), contextlib.suppress(SystemExit):
        trainer.train()  # It always ends in sys.exit.
    _calls.remove(call)
    return call


def _entry() -> None:
    """What the toolkit calls."""
    call = _calls[-1]
    call.made = True
    try:
        call.entry()
    except BaseException as error:
        call.error = error
        # The one exception that the toolkit does not log with a traceback of its own.
        client_error = importlib.import_module("sagemaker_training.errors").ClientError
        raise client_error(str(error)) from None


def complete_tree(shadow: Path, paths: SageMakerPaths, hyperparameters: Mapping[str, Any]) -> Path:
    """A tree with every configuration file, defaults for those that are missing, beside links to the real folders.

    It is never the user's tree that is added to: /opt/ml/input may be read-only.
    """
    config = shadow / "input" / "config"
    config.mkdir(parents=True)
    _write(
        config / "hyperparameters.json", {key: hyperparameters[key] for key in _TOOLKIT_KEYS if key in hyperparameters}
    )
    _write(config / "inputdataconfig.json", _read(paths.input_data_config, {}))
    _write(config / "resourceconfig.json", {**_DEFAULT_RESOURCES, **_read(paths.resource_config, {})})
    for name, target in (("model", paths.model), ("output", paths.output), ("checkpoints", paths.checkpoints)):
        (shadow / name).symlink_to(target)
    (shadow / "input" / "data").symlink_to(paths.data)
    return shadow


def _read(path: Path, default: dict[str, Any]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default  # What cannot be read is reported where it is used.
    return value if isinstance(value, dict) else default


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
