"""`make sbom` and `make scan`. No scanner, and no database of vulnerabilities, is at hand where this is tested."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.containers import IMAGE, ROOT, Engine

pytestmark = pytest.mark.image


def sbom(*words: str, path: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": path, "IMAGE": IMAGE}
    return subprocess.run([ROOT / "container/sbom.sh", *words], env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture
def path(engine: Engine) -> str:
    """Without the scanners that this machine may have."""
    folders = ("/usr/local/sbin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", str(Path(engine.command).parent))
    if any((Path(folder) / name).exists() for folder in folders for name in ("grype", "trivy")):
        pytest.skip("a scanner lies beside the system's programs")
    return ":".join(folders)


def test_sbom_and_licences_are_taken_out_of_the_image(path: str) -> None:
    done = sbom(path=path)
    assert done.returncode == 0, done.stderr
    assert json.loads((ROOT / "build/kennel.cdx.json").read_text())["bomFormat"] == "CycloneDX"
    assert "\ntorch\t" in (ROOT / "build/kennel-licences.txt").read_text()


def test_a_scan_without_a_scanner_is_no_clean_scan(path: str) -> None:
    done = sbom("scan", path=path)
    assert done.returncode == 1
    assert "NOTHING WAS SCANNED" in done.stderr


@pytest.mark.parametrize(("scanner", "words"), [("grype", "--fail-on high sbom:"), ("trivy", "sbom --exit-code 1")])
def test_a_scanner_is_handed_the_sbom_and_its_verdict_is_ours(
    path: str, tmp_path: Path, scanner: str, words: str
) -> None:
    program = tmp_path / scanner
    program.write_text('#!/bin/sh\necho "called with $*"\nexit 7\n')
    program.chmod(0o755)
    done = sbom("scan", path=f"{tmp_path}:{path}")
    assert done.returncode == 7
    assert f"called with {words}" in done.stdout
    assert "build/kennel.cdx.json" in done.stdout


def test_an_image_that_is_not_there_is_named(path: str) -> None:
    env = {**os.environ, "PATH": path, "IMAGE": "kennel-test:nowhere"}
    done = subprocess.run([ROOT / "container/sbom.sh"], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "there is no image kennel-test:nowhere" in done.stderr
