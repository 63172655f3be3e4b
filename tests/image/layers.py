"""The layers of an image, read in one pass over what the engine saves."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any

_CHUNK = 4 * 1024 * 1024
_WHITEOUT = ".wh."

Look = Callable[[str, bytes], None]


@dataclass
class Layer:
    """Files by path, with their sizes; paths that hide what lies below."""

    files: dict[str, int] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)

    @property
    def size(self) -> int:
        return sum(self.files.values())


def read_layers(engine: str, image: str, look: Look) -> list[Layer]:
    """From the lowest to the highest; `look` sees the path and the content of every file, in pieces that overlap."""
    command = [engine, "save", image]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as save:
        assert save.stdout is not None
        with tarfile.open(fileobj=save.stdout, mode="r|") as archive:
            layers, manifest = _read_archive(archive, look)
    assert save.returncode == 0
    return [layers[name] for name in manifest[0]["Layers"]]


def _read_archive(archive: tarfile.TarFile, look: Look) -> tuple[dict[str, Layer], Any]:
    layers: dict[str, Layer] = {}
    manifest: Any = None
    for member in archive:
        content = archive.extractfile(member) if member.isfile() else None
        if content is None:
            continue
        if member.name == "manifest.json":
            manifest = json.load(content)
        elif member.size > 0 and not member.name.endswith(".json"):
            try:
                layers[member.name] = read_layer(content, look)
            except tarfile.ReadError:
                continue  # the configuration: JSON, under a name of digits
    return layers, manifest


def read_layer(content: IO[bytes], look: Look) -> Layer:
    layer = Layer()
    with tarfile.open(fileobj=content, mode="r|*") as archive:
        for member in archive:
            path = PurePosixPath("/", member.name)
            if path.name.startswith(_WHITEOUT):
                layer.hidden.add(str(path.with_name(path.name.removeprefix(_WHITEOUT))))
            elif member.isfile():
                layer.files[str(path)] = member.size
                file = archive.extractfile(member)
                assert file is not None
                for piece in _pieces(file):
                    look(str(path), piece)
    return layer


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    """Pieces that share 4 KiB with the one before, so that nothing falls between two."""
    tail = b""
    while piece := file.read(_CHUNK):
        yield tail + piece
        tail = piece[-4096:]


def wasted(layers: Sequence[Layer]) -> int:
    """Bytes that are pulled and never seen: files that a later layer replaces or hides."""
    total = 0
    for index, layer in enumerate(layers):
        later = layers[index + 1 :]
        replaced = {path for other in later for path in other.files}
        hidden = {path for other in later for path in other.hidden}
        total += sum(size for path, size in layer.files.items() if path in replaced or _under(path, hidden))
    return total


def _under(path: str, folders: set[str]) -> bool:
    return path in folders or any(str(parent) in folders for parent in PurePosixPath(path).parents)
