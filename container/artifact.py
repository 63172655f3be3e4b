"""The artifact: what training leaves in /opt/ml/model, and the manifest in which it describes itself.

    manifest.json         written last: a folder without it is no artifact
    model.onnx            the network, float32
    model.int8.onnx       the same in int8, where it was made; `network` names the one that is served
    weights.safetensors   the same weights, for further training

Both networks take `photos`, (batch, 3, height, width) float32, and give by name

    logits    (batch, classes)
    features  (batch, channels)        what the head sees: for similarity search
    maps      (batch, channels, h, w)  what `features` is the mean of over h and w

The class-activation map of a class is the sum of `maps`, each weighted with the class's value for that channel in
`fc.weight` (classes, channels) of weights.safetensors; a head of several layers (`head` is "mlp") has none. An output
that is not asked for costs nothing.

No pickle, no code, and no torch at import.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from container.errors import ArtifactError
from container.preprocessing import Preprocessing

MANIFEST: Final = "manifest.json"
NETWORK: Final = "model.onnx"
INT8_NETWORK: Final = "model.int8.onnx"
WEIGHTS: Final = "weights.safetensors"
SCHEMA_VERSION: Final = 1

_STAGING_PREFIX: Final = ".incomplete-"
_REQUIRED: Final = ("schema_version", "architecture", "class_names", "preprocessing", "top_k", "files")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """What a file of the artifact must be."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that serving needs to know of a trained network.

    Probabilities are softmax(logits / temperature); one at or above `confidence_threshold` (0 … 1, none: null) is
    `confident`. `precision` is that of `network`: float32 or int8.
    """

    architecture: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    top_k: int
    network: str = NETWORK
    precision: str = "float32"
    # What logits are divided by before the softmax, and the probability from which an answer counts as confident.
    temperature: float = 1.0
    confidence_threshold: float | None = None
    head: str = "linear"
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""

    @property
    def version(self) -> str:
        """Twelve hexadecimal digits that change with the served network."""
        return self.files[self.network].sha256[:12]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "version": self.version,
            "created": self.created,
            "architecture": self.architecture,
            "class_names": list(self.class_names),
            "preprocessing": self.preprocessing.to_json(),
            "top_k": self.top_k,
            "network": self.network,
            "precision": self.precision,
            "temperature": self.temperature,
            "confidence_threshold": self.confidence_threshold,
            "head": self.head,
            "files": {name: {"sha256": entry.sha256, "bytes": entry.bytes} for name, entry in self.files.items()},
            "metrics": dict(self.metrics),
            "hyperparameters": dict(self.hyperparameters),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, value: Any) -> Manifest:
        """Raises ArtifactError that names what is missing or wrong."""
        if not isinstance(value, dict):
            raise ArtifactError(f"{MANIFEST} holds {type(value).__name__}, not an object")
        missing = [key for key in _REQUIRED if key not in value]
        if missing:
            raise ArtifactError(f"{MANIFEST} lacks {', '.join(missing)}")
        if value["schema_version"] != SCHEMA_VERSION:
            raise ArtifactError(
                f"{MANIFEST} has schema_version {value['schema_version']!r}; this image reads {SCHEMA_VERSION}: "
                "serve it with the image that trained it"
            )
        try:
            return cls._checked(value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{MANIFEST} cannot be read: {type(error).__name__}: {error}") from error

    @classmethod
    def _checked(cls, value: dict[str, Any]) -> Manifest:
        files = {
            name: FileEntry(sha256=entry["sha256"], bytes=entry["bytes"]) for name, entry in value["files"].items()
        }
        manifest = cls(
            architecture=str(value["architecture"]),
            class_names=tuple(str(name) for name in value["class_names"]),
            preprocessing=Preprocessing.from_json(value["preprocessing"]),
            top_k=int(value["top_k"]),
            network=str(value.get("network", NETWORK)),
            precision=str(value.get("precision", "float32")),
            temperature=float(value.get("temperature", 1.0)),
            confidence_threshold=_optional_float(value.get("confidence_threshold")),
            head=str(value.get("head", "linear")),
            files=files,
            metrics=dict(value.get("metrics", {})),
            hyperparameters=dict(value.get("hyperparameters", {})),
            versions=dict(value.get("versions", {})),
            created=str(value.get("created", "")),
        )
        if manifest.network not in files:
            raise ArtifactError(f"{MANIFEST} names the network {manifest.network!r}, which is not among its files")
        odd = [name for name in files if Path(name).name != name or name.startswith(".")]
        if odd:
            raise ArtifactError(f"{MANIFEST} lists {odd[0]!r}; files lie beside the manifest, by a plain name")
        if not 0 < manifest.temperature < float("inf"):
            raise ArtifactError(f"{MANIFEST} has the temperature {manifest.temperature}; it must be above 0")
        if len(manifest.class_names) < 2:
            raise ArtifactError(f"{MANIFEST} has {len(manifest.class_names)} class name(s); at least 2 are needed")
        return manifest


def _optional_float(value: Any) -> float | None:
    return None if value is None else float(value)


def save_artifact(folder: Path, manifest: Manifest, writers: Mapping[str, Callable[[Path], object]]) -> Manifest:
    """Write every file through its writer, then the manifest; return the manifest with the files' digests.

    An artifact that stood in `folder` stays whole until the new one is: the files are written, hashed and flushed to
    disk in a hidden folder beside them first. Then its manifest goes, and theirs moves last: what ends the process
    between these renames leaves a folder that is no artifact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    discard_incomplete(folder)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=folder))
    try:
        for name, write in writers.items():
            write(staging / name)
        files = {name: _entry(staging / name) for name in writers}
        created = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = replace(manifest, files=files, created=created)
        (staging / MANIFEST).write_text(json.dumps(manifest.to_json(), indent=2) + "\n", encoding="utf-8")
        _publish(staging, folder, [*writers, MANIFEST])
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _publish(staging: Path, folder: Path, names: list[str]) -> None:
    for name in names:
        path = staging / name
        path.chmod(0o644)  # Serving may run as another user than training.
        with path.open("rb") as file:
            os.fsync(file.fileno())  # Here, where it may take seconds, and not between the renames.
    discard_artifact(folder)
    for name in names:
        (staging / name).replace(folder / name)


def discard_artifact(folder: Path) -> None:
    """Remove what stands there, its manifest first: what is left of the files is no artifact."""
    for name in (MANIFEST, NETWORK, INT8_NETWORK, WEIGHTS):
        (folder / name).unlink(missing_ok=True)


def discard_incomplete(folder: Path) -> None:
    """Remove what a killed run left half-written: containers are started again on the same folders."""
    for stale in folder.glob(f"{_STAGING_PREFIX}*"):
        shutil.rmtree(stale, ignore_errors=True)


def find_artifact(folder: Path) -> Path:
    """Return the folder that holds the manifest: `folder`, or the one folder in it (a tar with one level too many).

    Raises ArtifactError that lists what was found instead.
    """
    with _reading(folder):
        if (folder / MANIFEST).is_file():
            return folder
        if not folder.is_dir():
            raise ArtifactError(f"there is no model folder {folder}; mount an artifact there: -v …/model:{folder}:ro")
        # "._*" files are what macOS adds to archives.
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        if len(entries) == 1 and (entries[0] / MANIFEST).is_file():
            return entries[0]
    found = ", ".join(path.name for path in entries[:5]) or "nothing"
    raise ArtifactError(
        f"{folder} holds no {MANIFEST} (found: {found}); it must hold what `train` left in its model folder"
    )


def load_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of the artifact in `folder` (see `find_artifact`); the files are not opened."""
    path = find_artifact(folder) / MANIFEST
    try:
        with _reading(folder):
            value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON: {error}") from error
    return Manifest.from_json(value)


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file with the manifest's size and sha256; raises ArtifactError for the first that differs."""
    for name, entry in manifest.files.items():
        path = folder / name
        with _reading(folder):
            if not path.is_file():
                raise ArtifactError(f"{folder} lacks {name}, which {MANIFEST} lists")
            found = _entry(path)
        if found != entry:
            raise ArtifactError(
                f"{path} is not the file that {MANIFEST} describes: {found.bytes} bytes, sha256 {found.sha256[:12]}…, "
                f"expected {entry.bytes} with {entry.sha256[:12]}…; copy the artifact again"
            )


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Training may have run as another user than serving does, with rights for itself alone."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"{error.filename or folder} cannot be read ({error.strerror}) by user {os.getuid()}; "
            f"let everybody read the artifact: chmod -R a+rX {folder}"
        ) from error


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(sha256=digest, bytes=path.stat().st_size)
