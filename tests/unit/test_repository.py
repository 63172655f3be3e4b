"""What a stranger relies on before running anything."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name]


def test_readmes_first_screen_has_the_two_commands() -> None:
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:24])
    assert re.search(r"^make demo\b", first_screen, re.MULTILINE)
    assert re.search(r"^make test\b", first_screen, re.MULTILINE)


@pytest.mark.parametrize("name", ["container/build.sh", "container/engine.sh", "deploy/setup.sh", ".ci/run"])
def test_scripts_can_be_run(name: str) -> None:
    path = ROOT / name
    assert path.stat().st_mode & 0o111
    assert path.read_text().startswith("#!")


def test_a1_8_text_files_have_unix_line_ends() -> None:
    for path in tracked():
        if path.suffix not in {".png", ".jpg"}:
            assert b"\r\n" not in path.read_bytes(), path


def test_every_package_of_the_locks_carries_hashes() -> None:
    for lock in [*ROOT.glob("*/requirements*.txt")]:
        entries = re.split(r"^(?=[a-zA-Z0-9])", lock.read_text(), flags=re.MULTILINE)[1:]
        assert entries, lock
        assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == [], lock
