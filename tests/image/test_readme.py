"""The README's commands, run as they stand there, on small photos and a small network."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.containers import IMAGE, Engine
from tests.documents import blocks
from tests.support import encoded, free_port, picture, wait_until
from tests.training import SMALL, arguments, write_digits

pytestmark = [pytest.mark.image, pytest.mark.slow]

# Photos of 32 pixels, and no weights that would have to be downloaded.
SMALLER = " ".join(arguments({**SMALL, "report": "false"}))


def lines() -> list[str]:
    """Train, serve, ask: the block that begins with docker run."""
    (block,) = [one for one in blocks() if one.page == "README.md" and one.text.startswith("docker run")]
    return block.text.splitlines()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with what the README assumes: photos/ with a folder a class, and dog.jpg."""
    write_digits(tmp_path / "photos", per_class=12)
    (tmp_path / "dog.jpg").write_bytes(encoded(picture(), "JPEG"))
    return tmp_path


@pytest.fixture
def name(engine: Engine) -> Iterator[str]:
    """Of the container that serves; it is taken away at the end."""
    found = f"kennel-test-{uuid.uuid4().hex[:12]}"
    yield found
    engine("rm", "--force", found, check=False)


def test_the_three_commands_train_serve_and_answer(engine: Engine, place: Path, name: str) -> None:
    train, serve, ask = lines()
    port = free_port()
    run = f"{engine.command} run --rm "
    train = train.replace("docker run ", run).replace(" kennel ", f" {IMAGE} ").replace("--epochs 3", SMALLER)
    serve = serve.replace("docker run ", f"{run}--name {name} ").replace(" kennel ", f" {IMAGE} ")
    _bash(train, place)
    with subprocess.Popen(["bash", "-c", serve.replace(":8080:8080", f":{port}:8080")], cwd=place):
        wait_until(lambda: _answers(port), timeout_s=120, what="the container of the README")
        answer = json.loads(_bash(f"{ask.replace(':8080', f':{port}')} --silent --show-error", place))
        engine("stop", name)
    assert answer["label"] in {"0", "1", "2"}
    assert answer["model"]["architecture"] == "resnet18"


def _bash(command: str, place: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=place, capture_output=True, text=True, env={**os.environ, "PWD": str(place)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ping", timeout=2).status_code == 200
    except httpx.TransportError:
        return False
