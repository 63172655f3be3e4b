"""Multi-model mode: SageMaker's load, list, get and unload, kept true where MMS alone is not.

MMS keeps a dead entry of a model that found no memory, drops the calls of a model that is unloaded, loads any URL,
and knows nothing of memory before it is gone.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from container.artifact import MANIFEST, Manifest, find_artifact, load_manifest, verify_files
from container.errors import ArtifactError, KennelError, OutOfMemoryError, RequestError, ServingError
from serve.api import MAX_MODEL_NAME, MODEL_NAME
from serve.control import Fleet
from serve.front import FrontRuntime
from serve.logs import log
from serve.machine import MIB
from serve.metrics import forget_figures
from serve.mms import Management, MmsPlace, write_settings
from serve.shape import loading_mib, model_mib

_NAME: Final = re.compile(MODEL_NAME)
_MOST_PER_PAGE: Final = 100
_POLL_S: Final = 0.02
# A killed worker is back within 2 s of its loading time; a model that has none for this long is loaded anew.
_LOST_AFTER_S: Final = 30.0


class ModelNotFoundError(RequestError):
    """A model that is not loaded, or no folder there."""

    status: ClassVar[int] = 404
    code: ClassVar[str] = "model_not_found"


class ModelConflictError(RequestError):
    """A model of this name is loaded already."""

    status: ClassVar[int] = 409
    code: ClassVar[str] = "model_already_loaded"


class ModelUnusableError(RequestError):
    """An artifact that cannot be served, wherever it is loaded."""

    code: ClassVar[str] = "model_unusable"


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    name: str
    url: str
    manifest: Manifest

    def to_json(self) -> dict[str, str]:
        return {"modelName": self.name, "modelUrl": self.url}


class Models:
    """The models that are loaded. Calls come from many threads; loading and unloading go one at a time by name."""

    def __init__(
        self,
        *,
        folder: Path,
        memory_mib: int,
        workers: int,
        on_gpu: bool,
        settings: Mapping[str, Any],
        place: MmsPlace,
        fleet: Fleet,
        front: FrontRuntime,
        load_timeout_s: float,
        drain_timeout_s: float,
    ) -> None:
        """`folder` is the only one that models may lie in; `memory_mib` is what all of them may take together."""
        self._folder = folder
        self._memory_mib = memory_mib
        self._workers = workers
        self._on_gpu = on_gpu
        self._settings = settings
        self._place = place
        self._management = Management(place)
        self._fleet = fleet
        self._front = front
        self._load_timeout_s = load_timeout_s
        self._drain_timeout_s = drain_timeout_s
        self._loaded: dict[str, LoadedModel] = {}
        self._planned_mib: dict[str, int] = {}
        self._busy: set[str] = set()
        self._last_seen: dict[str, float] = {}
        self._mending: set[str] = set()
        self._lost = ""
        self._changed = threading.Condition()

    def all(self) -> Sequence[LoadedModel]:
        """In the order of names."""
        return sorted(self._loaded.values(), key=lambda model: model.name)

    def list(self, limit: str, token: str) -> dict[str, Any]:
        """One page, in the order of names; `limit` and `token` as the query has them, empty for none."""
        size = _number(limit, "limit", least=1, default=_MOST_PER_PAGE)
        first = _number(token, "next_page_token", least=0, default=0)
        models = self.all()
        answer: dict[str, Any] = {"models": [model.to_json() for model in models[first : first + size]]}
        if first + size < len(models):
            answer["nextPageToken"] = str(first + size)
        return answer

    def get(self, name: str) -> LoadedModel:
        try:
            return self._loaded[name]
        except KeyError:
            raise ModelNotFoundError(f"no model {name!r} is loaded") from None

    def load(self, name: str, url: str) -> None:
        """Load the artifact in the local folder `url`, and return when a worker has answered its warm-up.

        Raises ModelConflictError, ModelNotFoundError, ModelUnusableError, OutOfMemoryError; nothing of a failed
        load is left behind.
        """
        if not _NAME.fullmatch(name) or len(name) > MAX_MODEL_NAME:
            raise RequestError(
                f"model_name is {name[:300]!r}; it must match {MODEL_NAME}, {MAX_MODEL_NAME} letters at most"
            )
        with self._alone(name):
            if name in self._loaded:
                raise ModelConflictError(f"model {name!r} is already loaded")
            self._load(name, url)

    def unload(self, name: str) -> None:
        """Refuse new calls, let the running ones end, then end the workers and free their memory."""
        with self._alone(name):
            self.get(name)
            self._unload(name)

    def mend(self) -> None:
        """Begin to load anew each model whose workers do not come back; raises ServingError where that failed too."""
        if self._lost:
            raise ServingError(self._lost)
        now = time.monotonic()
        for model in self.all():
            if self._fleet.has(model.name):
                self._last_seen[model.name] = now
            absent_s = now - self._last_seen.setdefault(model.name, now)
            gone = model.name in self._fleet.orphaned_models() or absent_s > _LOST_AFTER_S
            if gone and model.name not in self._mending:
                self._mending.add(model.name)
                # In a thread: it waits for calls that run, and `serve` must see a SIGTERM meanwhile.
                threading.Thread(target=self._load_anew, args=(model,), daemon=True).start()

    def _load_anew(self, model: LoadedModel) -> None:
        try:
            with self._alone(model.name):
                if self._loaded.get(model.name) is model:  # Else the platform has unloaded it, or loaded it anew.
                    log("serve", "this model's workers do not come back; it is loaded anew", model=model.name)
                    self._unload(model.name)
                    self._load(model.name, model.url)
        except KennelError as error:
            self._lost = f"model {model.name!r} was lost and cannot be loaded anew: {error}"
        finally:
            self._last_seen.pop(model.name, None)
            self._mending.discard(model.name)

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Wait until nobody else loads or unloads `name`, and keep others waiting."""
        with self._changed:
            self._changed.wait_for(lambda: name not in self._busy)
            self._busy.add(name)
        try:
            yield
        finally:
            with self._changed:
                self._busy.discard(name)
                self._changed.notify_all()

    # Alone with the name ------------------------------------------------------------------------------------

    def _load(self, name: str, url: str) -> None:
        artifact, manifest = self._open(url)
        memory_mib = self._reserve(name, manifest)
        try:
            self._start(name, artifact)
        except BaseException:
            self._remove(name)
            raise
        self._planned_mib[name] = memory_mib
        self._loaded[name] = LoadedModel(name=name, url=url, manifest=manifest)
        self._front.allow(name)
        log("serve", "model loaded", model=name, url=url, memory_planned_mib=memory_mib)

    def _unload(self, name: str) -> None:
        self._front.refuse(name)
        del self._loaded[name]
        self._until(lambda: not self._front.running(name), self._drain_timeout_s)
        self._remove(name)
        log("serve", "model unloaded", model=name)

    def _open(self, url: str) -> tuple[Path, Manifest]:
        path = Path(url)
        try:
            inside = "://" not in url and path.is_absolute() and self._holds(path)
            found = inside and path.is_dir()
        except (OSError, ValueError):  # Too long, say, or with a null character.
            inside = found = False
        if not inside:
            raise RequestError(f"url is {url[:300]!r}; it must be a local folder in {self._folder}")
        if not found:
            raise ModelNotFoundError(f"there is no folder {url}")
        try:
            artifact, manifest = find_artifact(path), load_manifest(path)
            self._check_inside(artifact, manifest)
            verify_files(artifact, manifest)
        except ArtifactError as error:
            raise ModelUnusableError(str(error)) from error
        return artifact, manifest

    def _holds(self, path: Path) -> bool:
        """Whether `path`, links followed, is one in the folder of models."""
        return path.resolve().is_relative_to(self._folder.resolve())

    def _check_inside(self, artifact: Path, manifest: Manifest) -> None:
        for name in (MANIFEST, *manifest.files):
            if not self._holds(artifact / name):
                raise RequestError(f"{artifact / name} is a link out of {self._folder}; models must lie in it whole")

    def _reserve(self, name: str, manifest: Manifest) -> int:
        """Plan for what loading takes, so that others that load meanwhile fit beside it; return what it needs then."""
        size = manifest.files[manifest.network].bytes
        need = self._workers * model_mib(size, on_gpu=self._on_gpu)
        for_a_moment = self._workers * loading_mib(size)
        with self._changed:
            taken = sum(self._planned_mib.values())
            if taken + need + for_a_moment > self._memory_mib:
                raise OutOfMemoryError(
                    f"model {name!r} needs {need} MiB and {for_a_moment} more while it loads; "
                    f"{len(self._planned_mib)} other models take {taken} of {self._memory_mib} MiB"
                )
            self._planned_mib[name] = need + for_a_moment
        return need

    def _start(self, name: str, artifact: Path) -> None:
        folder = self._place.model(name)
        write_settings(folder, {**self._settings, "artifact": str(artifact)})
        failures = self._fleet.failures
        failures.pop(name, None)  # What an earlier worker of this name said.
        status, words = self._management.register(name, folder, workers=self._workers, timeout_s=self._load_timeout_s)
        # A worker's own word may come a moment after MMS's.
        ready = status == 200 and self._until(lambda: self._fleet.ready(name) or name in failures, 5)
        self._until(lambda: ready or name in failures, 1)
        if failure := failures.pop(name, None):
            raise ModelUnusableError(failure)
        if not ready:
            raise OutOfMemoryError(f"no worker of model {name!r} came up; it found too little memory ({words})")

    def _remove(self, name: str) -> None:
        self._fleet.dismiss(name)
        self._management.unregister(name)
        self._until(lambda: not self._fleet.has(name), 5)
        forget_figures(self._place.metrics, self._fleet.forget(name))
        shutil.rmtree(self._place.model(name), ignore_errors=True)
        self._planned_mib.pop(name, None)
        self._last_seen.pop(name, None)

    def _until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True


def _number(text: str, name: str, *, least: int, default: int) -> int:
    if not text:
        return default
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        raise RequestError(f"{name} is {text!r}; it must be a whole number of {least} or more")
    return int(text)


def memory_for_models(limit_bytes: int, base_mib: int) -> int:
    """MiB that all models may take together, beside `base_mib` for everything else."""
    return limit_bytes // MIB - base_mib
