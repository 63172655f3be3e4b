"""`docker run kennel serve` on the real engine, from an artifact that the same image trained (contract.md, A6, A8)."""

from __future__ import annotations

import contextlib
import json
import select
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.benchmarks import networks
from tests.containers import Engine, Server, serving
from tests.contract.test_serve_openapi import schemathesis
from tests.serving import WHITE, tiny_network, write_artifact
from tests.support import encoded, free_port, odd_photos, picture, wait_until

pytestmark = pytest.mark.image


LITTLE = ("--memory", "1g", "--memory-swap", "1g")


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
            # --ipc none: there is no /dev/shm.
            ("--user", "65534:65534", "--read-only", "--tmpfs", "/tmp", "--ipc", "none", "--memory", "1g"),
            id="a8_76_serverless",
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


@pytest.mark.slow
def test_a8_76_a_resnet_50_and_the_largest_photos_fit_in_one_gigabyte(engine: Engine, tmp_path: Path) -> None:
    """float32, in the smallest serverless container, with several of the photos that take the most memory at once."""
    model = networks.build("resnet50", tmp_path / "resnet50.pth")
    networks.write_float32(model, "resnet50", tmp_path / "model")
    for path in (tmp_path, tmp_path / "model"):
        path.chmod(0o755)
    large = [
        encoded(Image.new("RGB", (7_900, 7_900))),
        encoded(Image.new("RGBA", (5_600, 5_600))),
        encoded(Image.new("RGB", (6_500, 6_500)), "JPEG", progressive=True, subsampling=0),
        encoded(picture(1_500, 1_500), "BMP"),
    ]
    options = ("--user", "65534:65534", "--read-only", "--tmpfs", "/tmp", "--ipc", "none")
    limit = (*LITTLE, "--cpus", "1", "--env", "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS=300")
    with serving(engine, tmp_path / "model", options=(*options, *limit)) as server:
        before = worker_pids(server)
        assert server.post_all(large) == [200] * len(large)
        assert worker_pids(server) == before
        assert server.ping() == 200


@pytest.fixture(scope="module")
def greedy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models whose network takes far more memory than its file lets one plan for: one for a white photo, one always."""
    folder = tmp_path_factory.mktemp("greedy")
    folder.chmod(0o755)
    for name, network in (("white", tiny_network(grabs=0.9)), ("always", tiny_network(grabs=-100.0))):
        write_artifact(folder / name / "model", network)
    write_artifact(folder / "modest" / "model")
    for path in folder.rglob("*"):
        path.chmod(0o755)
    return folder


def test_a6_53_a_worker_that_is_killed_for_its_memory_is_503_and_comes_back(engine: Engine, greedy: Path) -> None:
    with serving(engine, greedy / "white" / "model", options=LITTLE) as server:
        assert server.post(encoded(picture())).status_code == 200
        answer = server.post(WHITE)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "worker_died")
        assert answer.headers["retry-after"] == "1"
        wait_until(lambda: server.post(encoded(picture())).status_code == 200, timeout_s=60, what="another worker")
        wait_until(lambda: server.ping() == 200, timeout_s=60, what="/ping to say 200")


def test_a7_68_a_model_that_finds_no_memory_is_507_and_leaves_nothing_behind(engine: Engine, greedy: Path) -> None:
    """By the plan, and where the plan was wrong: the kernel kills the worker while it loads."""
    env = ("--env", "SAGEMAKER_MULTI_MODEL=true", "--env", "SAGEMAKER_MAX_PAYLOAD_IN_MB=6")
    limit = ("--memory", "1300m", "--memory-swap", "1300m", "--cpus", "2")
    options = (*limit, *env, "--volume", f"{greedy}:/opt/ml/models:ro")
    with serving(engine, greedy / "modest", options=options) as server:

        def load(name: str, model: str) -> httpx.Response:
            body = {"model_name": name, "url": f"/opt/ml/models/{model}/model"}
            return httpx.post(f"{server.url}/models", json=body, timeout=120)

        def invoke(name: str) -> int:
            headers = {"Content-Type": "image/png"}
            return httpx.post(
                f"{server.url}/models/{name}/invoke", content=encoded(picture()), headers=headers
            ).status_code

        assert load("modest", "modest").status_code == 200
        for _ in range(2):  # The second would be 409 if a dead entry stayed.
            answer = load("greedy", "always")
            assert (answer.status_code, answer.json()["error"]["code"]) == (507, "insufficient_memory")
            assert invoke("greedy") == 404
        assert invoke("modest") == 200
        statuses = [load(f"m{number}", "modest").status_code for number in range(12)]
        assert statuses == sorted(statuses)
        assert set(statuses) == {200, 507}
        last = f"m{statuses.index(507)}"
        assert load(last, "modest").status_code == 507
        assert httpx.delete(f"{server.url}/models/m0").status_code == 200
        assert load(last, "modest").status_code == 200
        assert invoke(last) == 200


def test_a6_51_it_listens_on_its_port_alone(server: Server) -> None:
    """No other port, on any address: nothing for SAGEMAKER_SAFE_PORT_RANGE to bound, MMS's management least of all."""
    tables = server.container.exec("cat", "/proc/net/tcp", "/proc/net/tcp6").stdout.splitlines()
    listening = [line.split()[1] for line in tables if line.split()[3] == "0A"]
    assert [int(address.split(":")[1], 16) for address in listening] == [8080]


def test_a6_57_it_serves_from_a_read_only_model_folder(server: Server) -> None:
    assert server.post(encoded(picture())).status_code == 200
    assert server.container.exec("touch", "/opt/ml/model/x").returncode != 0


def test_the_running_container_is_what_its_document_says(server: Server, tmp_path: Path) -> None:
    schemathesis(f"{server.url}/openapi.json", tmp_path, examples=10)
    assert server.ping() == 200


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
        with ThreadPoolExecutor(1) as pool:  # They may be back before the engine has told that they were killed.
            killing = pool.submit(server.container.exec, "bash", "-c", f"kill -KILL {' '.join(before)}")
            wait_until(lambda: server.ping() == 503, timeout_s=30, what="an honest /ping")
            assert killing.result().returncode == 0
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
