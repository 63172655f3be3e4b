"""`docker run kennel serve` on the real engine, from an artifact that the same image trained (CONTRACT A6, A8)."""

from __future__ import annotations

import contextlib
import json
import select
import shutil
import socket
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.containers import Engine, Server, serving
from tests.support import encoded, free_port, odd_photos, picture, wait_until

pytestmark = pytest.mark.image


@pytest.fixture(scope="module")
def server(engine: Engine, artifact: Path) -> Iterator[Server]:
    with serving(engine, artifact) as server:
        yield server


@pytest.mark.parametrize("name", odd_photos())
def test_every_kind_of_photo_is_answered(server: Server, name: str) -> None:
    answer = server.post(odd_photos()[name])
    assert answer.status_code == 200, answer.text
    prediction = answer.json()
    assert prediction["label"] == prediction["predictions"][0]["label"]
    assert 0 < prediction["probability"] <= 1
    assert prediction["model"]["architecture"] == "resnet18"


def test_sample_photos_are_answered(server: Server) -> None:
    photos = sorted(Path(str(resources.files("sklearn.datasets.images"))).glob("*.jpg"))
    assert len(photos) == 2
    for photo in photos:
        assert server.post(photo.read_bytes(), "image/jpeg").status_code == 200, photo


def test_a6_61_the_callers_mistakes_are_4xx_with_a_sentence(server: Server) -> None:
    cases = {
        "no photo": (400, server.post(b"no photo")),
        "no JSON": (400, server.post(b'{"instances": [', "application/json")),
        "unknown path": (404, httpx.get(f"{server.url}/nowhere")),
        "wrong method": (405, httpx.get(f"{server.url}/invocations")),
        "Accept": (406, server.post(encoded(picture()), Accept="audio/ogg")),
        "too large": (413, server.post(b"\0" * (25 * 1024**2 + 1))),
        "form": (415, server.post(b"a=b", "application/x-www-form-urlencoded")),
        "multipart": (415, server.post(b"--x--", "multipart/form-data; boundary=x")),
        "bomb": (422, server.post(encoded(Image.new("1", (16_000, 16_000))))),
    }
    for name, (status, answer) in cases.items():
        assert answer.status_code == status, name
        error = answer.json()["error"]
        assert error["message"]
        assert error["code"]
        assert error["request_id"]
        assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            ("--user", "65534:65534", "--read-only", "--tmpfs", "/tmp", "--memory", "1g"), id="a8_76_serverless"
        ),
        pytest.param(
            ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"), id="locked"
        ),
    ],
)
def test_it_serves_where_it_may_write_nowhere_but_tmp(engine: Engine, artifact: Path, options: tuple[str, ...]) -> None:
    with serving(engine, artifact, options=options) as server:
        assert server.post(encoded(picture())).status_code == 200
        assert server.container.stop() == 0


def test_without_any_folder_to_write_to_it_ends_with_a_sentence(engine: Engine, artifact: Path) -> None:
    with serving(engine, artifact, options=("--read-only",), ready=False) as server:
        assert server.container.wait(timeout_s=30) == 1
        logs = server.container.logs()
    assert "serve: no temporary folder can be written to" in logs
    assert "Traceback" not in logs


def test_it_serves_without_any_network(engine: Engine, artifact: Path) -> None:
    call = (
        "import urllib.request as u; "
        "print(u.urlopen(u.Request('http://127.0.0.1:8080/invocations', open('/photo.png', 'rb').read(),"
        " {'Content-Type': 'image/png'})).read().decode())"
    )
    photo = artifact.parent / "photo.png"
    photo.write_bytes(encoded(picture()))
    options = ("--network", "none", "--volume", f"{artifact}:/opt/ml/model:ro", "--volume", f"{photo}:/photo.png:ro")
    with engine.started("serve", options=options) as container:
        wait = "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/ping')"
        wait_until(lambda: container.exec("python3", "-c", wait).returncode == 0, timeout_s=90, what="/ping inside")
        assert "label" in json.loads(container.exec("python3", "-c", call).stdout)


def test_a6_51_two_servers_share_a_host_network(engine: Engine, artifact: Path) -> None:
    ports = (free_port(), free_port())

    def options(port: int) -> tuple[str, ...]:
        return (
            "--network",
            "host",
            "--env",
            f"SAGEMAKER_BIND_TO_PORT={port}",
            "--volume",
            f"{artifact}:/opt/ml/model:ro",
        )

    with (
        engine.started("serve", options=options(ports[0])) as first,
        engine.started("serve", options=options(ports[1])) as second,
    ):
        for container, port in zip((first, second), ports, strict=True):
            server = Server(container, f"http://127.0.0.1:{port}")
            server.wait_until_ready()
            assert server.post(encoded(picture())).status_code == 200


def test_a6_56_sigterm_answers_what_is_in_flight(engine: Engine, artifact: Path) -> None:
    photo = odd_photos()["large.jpg"]
    head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(photo)}\r\n\r\n"
    with serving(engine, artifact) as server, contextlib.ExitStack() as stack:
        address = ("127.0.0.1", httpx.URL(server.url).port or 0)
        callers = [stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(8)]
        for caller in callers:
            caller.sendall(head.encode() + photo)
        select.select(callers, [], [], 60)  # One is answered: the others, sent before, wait behind it.
        assert server.container.stop() == 0
        assert [caller.recv(12) for caller in callers] == [b"HTTP/1.1 200"] * 8


def worker_pids(server: Server) -> set[str]:
    """Processes that run the worker program, without the one that forks them (the image ships no ps)."""
    script = "for p in /proc/[0-9]*; do grep -q serve/worker.py $p/cmdline && cut -d' ' -f1,4 $p/stat; done 2>/dev/null"
    parents = dict(line.split() for line in server.container.exec("bash", "-c", script).stdout.splitlines())
    return {pid for pid, parent in parents.items() if parent in parents}


def test_a6_53_a_killed_worker_comes_back(engine: Engine, artifact: Path) -> None:
    with serving(engine, artifact) as server:
        before = worker_pids(server)
        assert before
        server.container.exec("bash", "-c", f"kill -KILL {' '.join(before)}")
        wait_until(lambda: server.ping() == 503, timeout_s=10, what="an honest /ping")
        wait_until(lambda: server.ping() == 200, timeout_s=60, what="new workers")
        assert server.post(encoded(picture())).status_code == 200
        assert not before & worker_pids(server)


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_a_broken_artifact_ends_the_container_with_a_sentence(
    engine: Engine, artifact: Path, tmp_path: Path, damage: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(artifact, model)
    network = model / "model.onnx"
    if damage == "missing":
        network.unlink()
    elif damage == "truncated":
        network.write_bytes(network.read_bytes()[:1000])
    else:
        content = bytearray(network.read_bytes())
        content[len(content) // 2] ^= 0xFF
        network.write_bytes(content)
    with serving(engine, model, ready=False) as server:
        assert server.container.wait(timeout_s=30) != 0
        logs = server.container.logs()
        assert "model.onnx" in logs
        assert "Traceback" not in logs


def test_an_artifact_that_may_not_be_read_ends_the_container_with_a_sentence(
    engine: Engine, artifact: Path, tmp_path: Path
) -> None:
    """Training as root, with a umask of 077, and serving as somebody else."""
    model = tmp_path / "model"
    shutil.copytree(artifact, model)
    (model / "model.onnx").chmod(0o600)
    with serving(engine, model, options=("--user", "65534:65534"), ready=False) as server:
        assert server.container.wait(timeout_s=30) != 0
        logs = server.container.logs()
    assert "model.onnx cannot be read (Permission denied) by user 65534" in logs
    assert "Traceback" not in logs


def test_an_artifact_with_programs_in_it_runs_none_of_them(engine: Engine, artifact: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(artifact, model)
    for name in ("json.py", "numpy.py", "sitecustomize.py", "colorsys.py", "handler.py"):
        (model / name).write_text("import os; os._exit(66)\n")
    with serving(engine, model) as server:
        assert server.post(encoded(picture())).status_code == 200
