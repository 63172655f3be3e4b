"""container-structure-test, a tool that nobody here wrote, reads the image (structure.yaml)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.containers import IMAGE, Engine

pytestmark = pytest.mark.image


def structure_test(config: Path, image: str, folder: Path) -> dict[str, Any]:
    program = Path(sys.executable).parent / "container-structure-test"
    report = folder / "report.json"
    subprocess.run(
        [program, "test", "--image", image, "--config", config, "--output", "json", "--test-report", report],
        env={**os.environ, "HOME": str(folder)},
        capture_output=True,
        timeout=280,
        check=False,
    )
    return dict(json.loads(report.read_text()))


@pytest.fixture(autouse=True)
def docker(engine: Engine) -> None:
    if not engine.command.endswith("docker"):
        pytest.skip("container-structure-test speaks with Docker alone")


def test_the_image_is_built_as_it_is_described(tmp_path: Path) -> None:
    report = structure_test(Path(__file__).with_name("structure.yaml"), IMAGE, tmp_path)
    failed = [result for result in report["Results"] if not result["Pass"]]
    assert (failed, report["Fail"]) == ([], 0)
    assert report["Pass"] == report["Total"] >= 15


def test_the_tool_sees_what_is_not_so(tmp_path: Path) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text("schemaVersion: 2.0.0\nmetadataTest: {cmd: [serve]}\n")
    assert structure_test(config, IMAGE, tmp_path)["Fail"] == 1
