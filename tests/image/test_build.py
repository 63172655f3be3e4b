"""`make image`: finding an engine, and refusing in a sentence what cannot be built."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.containers import IMAGE, ROOT, Engine


def run(script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / script, *arguments], env=os.environ | env, capture_output=True, text=True, timeout=60, cwd="/"
    )


def test_a_client_whose_engine_does_not_answer_is_no_engine() -> None:
    nowhere = "unix:///nonexistent/docker.sock"
    result = run("container/engine.sh", "find", DOCKER_HOST=nowhere)
    podman = shutil.which("podman")  # It has no daemon whose absence could be shown.
    assert result.returncode == (0 if podman else 1)
    assert result.stdout.strip() == (podman or "")


def test_what_engine_is_asked_for_must_be_known() -> None:
    result = run("container/engine.sh", "destroy")
    assert result.returncode == 2
    assert "usage" in result.stderr


@pytest.mark.skipif(shutil.which("podman") is not None, reason="Podman answers to everybody")
def test_who_may_neither_start_nor_install_an_engine_is_told_what_to_do() -> None:
    with (ROOT / "container/engine.sh").open() as script:
        result = subprocess.run(
            ["sh", "-s", "ensure"],
            stdin=script,
            env=os.environ | {"DOCKER_HOST": "unix:///nonexistent/docker.sock"},
            user=65534 if os.getuid() == 0 else None,
            capture_output=True,
            text=True,
            timeout=60,
            cwd="/",
        )
    assert result.returncode == 1
    assert result.stdout == ""
    assert "start" in result.stderr
    assert len(result.stderr.splitlines()) <= 2


@pytest.mark.image
def test_the_engine_that_is_found_answers(engine: Engine) -> None:
    assert engine("info").returncode == 0


@pytest.mark.parametrize(("torch", "sentence"), [("rocm", "TORCH=rocm is unknown"), ("cpu", "make lock-cpu")])
def test_a_wheel_index_without_a_lock_is_refused_before_anything_starts(torch: str, sentence: str) -> None:
    if (ROOT / f"container/requirements-torch-{torch}.txt").exists():
        pytest.skip(f"the lock for TORCH={torch} exists here")
    result = run("container/build.sh", TORCH=torch)
    assert result.returncode == 1
    assert sentence in result.stderr


@pytest.mark.image
def test_any_base_and_any_user_can_be_chosen(engine: Engine, tmp_path: Path) -> None:
    """The build arguments reach the image; all but the last steps come from the cache."""
    tag = f"kennel-test:{tmp_path.name}".lower()
    try:
        result = subprocess.run(
            [ROOT / "container/build.sh"],
            env=os.environ | {"IMAGE": tag, "RUN_AS": "65534"},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        assert engine("run", "--rm", tag, "id", "-u").stdout.strip() == "65534"
        assert engine("run", "--rm", IMAGE, "id", "-u").stdout.strip() == "0"
    finally:
        engine("image", "rm", tag, check=False)
