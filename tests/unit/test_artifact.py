"""The artifact: save, find, load, verify."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from container.artifact import MANIFEST, NETWORK, Manifest, find_artifact, load_manifest, save_artifact, verify_files
from container.errors import ArtifactError
from container.preprocessing import Preprocessing

DRAFT = Manifest(
    architecture="resnet18",
    class_names=("ants", "bees"),
    preprocessing=Preprocessing.for_image_size(64),
    top_k=2,
    metrics={"validation:accuracy": 0.5},
)


def save(folder: Path, content: bytes = b"network") -> Manifest:
    return save_artifact(folder, DRAFT, {NETWORK: lambda path: path.write_bytes(content)})


def test_what_is_saved_is_loaded_and_verified(tmp_path: Path) -> None:
    saved = save(tmp_path)
    assert load_manifest(tmp_path) == saved
    verify_files(tmp_path, saved)
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST, NETWORK]


def test_the_version_follows_the_network(tmp_path: Path) -> None:
    assert save(tmp_path, b"one").version != save(tmp_path, b"two").version


def test_a_failed_save_leaves_the_artifact_before_it_whole(tmp_path: Path) -> None:
    before = save(tmp_path)
    with pytest.raises(ZeroDivisionError):
        save_artifact(tmp_path, DRAFT, {NETWORK: lambda path: 1 / 0})
    verify_files(tmp_path, load_manifest(tmp_path))
    assert load_manifest(tmp_path) == before


def test_a_disk_that_fails_leaves_the_artifact_before_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = save(tmp_path)

    def fail(_file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, b"new")
    verify_files(tmp_path, load_manifest(tmp_path))
    assert load_manifest(tmp_path) == before


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".incomplete-abc").mkdir()
    save(tmp_path)
    assert not list(tmp_path.glob(".incomplete-*"))


def test_one_folder_too_many_in_the_archive_is_forgiven(tmp_path: Path) -> None:
    save(tmp_path / "model")
    (tmp_path / "._model").write_text("macOS")
    assert find_artifact(tmp_path) == tmp_path / "model"


def test_a_missing_manifest_names_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"found: model\.pth"):
        load_manifest(tmp_path)
    with pytest.raises(ArtifactError, match="no model folder"):
        load_manifest(tmp_path / "absent")


@pytest.mark.parametrize("change", [b"netw0rk", b"net"])
def test_an_altered_file_is_named(tmp_path: Path, change: bytes) -> None:
    manifest = save(tmp_path)
    (tmp_path / NETWORK).write_bytes(change)
    with pytest.raises(ArtifactError, match=NETWORK):
        verify_files(tmp_path, manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema_version 99"),
        ({"class_names": ["one"]}, "at least 2"),
        ({"files": {"../evil": {"sha256": "", "bytes": 0}, NETWORK: {"sha256": "", "bytes": 0}}}, "plain name"),
        ({"network": "other.onnx"}, "other.onnx"),
        ({"preprocessing": {}}, "preprocessing"),
        ({"top_k": "many"}, "cannot be read"),
    ],
)
def test_a_manifest_that_cannot_be_followed_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    save(tmp_path)
    path = tmp_path / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ArtifactError, match=message):
        load_manifest(tmp_path)


def test_a_manifest_without_a_required_key_names_it(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(ArtifactError, match="lacks schema_version"):
        load_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text("not json")
    with pytest.raises(ArtifactError, match="cannot be read as JSON"):
        load_manifest(tmp_path)
