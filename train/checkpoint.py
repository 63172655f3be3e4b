"""Checkpoints: what a job needs to go on where it was stopped, in one file each, whole or not there.

A checkpoint is a safetensors file of tensors by name, with its figures as JSON in the header; its name says of which
job it is, and carries its own checksum: checkpoint-<step>-<fingerprint>-<sha256>.safetensors. SageMaker copies the
folder to S3 and back: what comes back may be half a file, or another job's, for jobs may share a prefix.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_KEEP: Final = 3
_NAME: Final = re.compile(r"checkpoint-(?P<step>\d{9})-(?P<job>\w*)-[0-9a-f]{16}\.safetensors")
_HEADER: Final = "kennel"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Tensors by name, and figures that JSON can hold."""

    tensors: dict[str, Tensor]
    figures: dict[str, Any]


def save_checkpoint(folder: Path, step: int, checkpoint: Checkpoint, *, fingerprint: str) -> None:
    """Write one file, atomically, and remove all but the newest few of this job."""
    if write_whole(folder, f"checkpoint-{step:09}-{fingerprint}", checkpoint):
        for old in _newest_first(folder, fingerprint)[_KEEP:]:
            old.unlink(missing_ok=True)


def write_whole(folder: Path, name: str, content: Checkpoint) -> bool:
    """Write `<name>-<checksum>.safetensors`, which is there whole or not at all; return whether it is.

    Where it cannot be written that is a warning: nobody wants to lose the job for it.
    """
    # Jobs may share the folder, and every container's first process has the same number.
    staged = folder / f".{name}-{secrets.token_hex(8)}.tmp"
    # safetensors refuses tensors that share memory or have gaps.
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in content.tensors.items()}
    try:
        save_file(tensors, staged, metadata={_HEADER: json.dumps(content.figures)})
        with staged.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            os.fsync(file.fileno())
        staged.replace(folder / f"{name}-{digest}.safetensors")
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            staged.unlink()
        size = sum(value.nbytes for value in tensors.values()) / 1e6
        print(
            f"warning: {name}, of {size:.0f} MB, cannot be written to {folder} ({error}); {_KEEP + 1} need room there; "
            "training goes on",
            flush=True,
        )
        return False
    return True


def load_newest(folder: Path, *, fingerprint: str) -> Checkpoint | None:
    """The newest checkpoint of this job that is whole; says which it passes over, and removes them."""
    discard_staged(folder, f"checkpoint-*-{fingerprint}")
    own = _newest_first(folder, fingerprint)
    others = sum(bool(_NAME.fullmatch(path.name)) for path in folder.iterdir()) - len(own)
    if others:
        print(
            f"warning: {others} checkpoint(s) in {folder} are of another job (other photos, pretrained weights or "
            "hyperparameters); they are left alone, and not used",
            flush=True,
        )
    for path in own:
        if checkpoint := read_whole(path):
            return checkpoint
        print(f"warning: {path.name} is damaged, and removed; trying the one before", flush=True)
        with contextlib.suppress(OSError):
            path.unlink()  # Its step may be the highest: the few that are kept would be it, and not those to come.
    return None


def discard_staged(folder: Path, names: str) -> None:
    """Remove what a killed run left half-written under names of that pattern: this job's own, not those of others."""
    for path in folder.glob(f".{names}-*.tmp"):
        path.unlink(missing_ok=True)


def _newest_first(folder: Path, fingerprint: str) -> list[Path]:
    named = [(path, _NAME.fullmatch(path.name)) for path in folder.iterdir()]
    own = [path for path, name in named if name and name["job"] == fingerprint]
    # A step that was taken twice, after a resumption, has two files.
    return sorted(own, key=lambda path: (path.name[:20], path.stat().st_mtime_ns), reverse=True)


def read_whole(path: Path) -> Checkpoint | None:
    """What `write_whole` wrote; None where the file is not what its name says."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        if not path.stem.endswith(f"-{digest}"):
            return None
        with safe_open(path, framework="pt") as content:
            figures = json.loads(content.metadata()[_HEADER])
            return Checkpoint(tensors={name: content.get_tensor(name) for name in content.keys()}, figures=figures)  # noqa: SIM118
    except (OSError, ValueError, KeyError):
        return None
