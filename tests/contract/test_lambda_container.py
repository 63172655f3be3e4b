"""From the caller through the real function to a real server (HAProxy, MMS, ONNX Runtime), and back."""

from __future__ import annotations

import base64
import io
import json
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import local
from classify import Application
from deploy.lambda_zip import build
from endpoint import SageMakerEndpoint
from tests.containers import Engine
from tests.lambda_runtime import ENDPOINT, SECRETS, Function, RuntimeStandIn, event, forward, function
from tests.serving import SIZE, WHITE, running_server, tiny_network, write_artifact
from tests.support import encoded, free_port, odd_photos, picture, wait_until

LOCAL = Path(local.__file__)


@pytest.fixture(scope="module", params=["host", pytest.param("image", marks=pytest.mark.image)])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a server with a tiny artifact: run here, and in the image."""
    base = tmp_path_factory.mktemp("opt-ml")
    write_artifact(base / "model")
    if request.param == "host":
        with running_server(base) as server:
            yield f"127.0.0.1:{server.port}"
        return
    engine: Engine = request.getfixturevalue("engine")
    port = free_port()
    mount = f"{base / 'model'}:/opt/ml/model:ro"
    with engine.started("serve", options=("-p", f"127.0.0.1:{port}:8080", "-v", mount)):
        found = f"127.0.0.1:{port}"
        wait_until(local.ContainerEndpoint(found).is_ready, timeout_s=60, what="the container")
        yield found


@pytest.fixture(scope="module")
def made(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Function]:
    root = tmp_path_factory.mktemp("lambda") / "task"
    zipfile.ZipFile(io.BytesIO(build().data)).extractall(root)
    with RuntimeStandIn(forward(address)) as runtime, function(root, runtime.env) as found:
        yield found


def image(data: bytes, **options: Any) -> dict[str, Any]:
    return {"image": base64.b64encode(data).decode(), **options}


def test_a_photo_gets_its_label(made: Function) -> None:
    answer = made.invoke(image(encoded(Image.new("RGB", (64, 48), "red")))).value

    assert answer["label"] == "red"
    assert len(answer["predictions"]) == 2
    assert answer["model"]["architecture"] == "resnet18"


@pytest.mark.parametrize("name", odd_photos())
def test_photos_of_odd_kinds_pass_through(made: Function, name: str) -> None:
    assert "label" in made.invoke(image(odd_photos()[name])).value


@pytest.mark.parametrize("name", ["rest_api_photo", "rest_api_json", "http_api_photo", "http_api_form"])
def test_sample_events_are_answered(made: Function, name: str) -> None:
    response = made.invoke(event(name)).value

    assert response["statusCode"] == 200
    assert json.loads(response["body"])["predictions"]


def test_top_k_reaches_the_model(made: Function) -> None:
    assert len(made.invoke(image(encoded(picture()), top_k=1)).value["predictions"]) == 1


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"this is no photo", 400),
        (b"\xff\xd8\xff\xe0" + bytes(100), 400),
        (b"\x89PNG\r\n\x1a\n", 400),
    ],
)
def test_a_photo_that_cannot_be_read_stays_the_callers_fault(made: Function, data: bytes, status: int) -> None:
    result = made.invoke(image(data))

    assert result.value["error"]["status"] == status
    assert result.value["error"]["code"] == "unreadable_photo"
    assert not [secret for secret in SECRETS if secret in result.payload.decode()]


def test_a_network_without_a_heat_map_says_so(made: Function) -> None:
    """A network whose graph has no class-activation output: 406, with the server's own sentence."""
    assert made.invoke(image(encoded(picture()), explain="cam")).value["error"]["status"] == 406


def test_old_callers_get_the_scores_of_all_classes(address: str, tmp_path: Path) -> None:
    root = tmp_path / "task"
    zipfile.ZipFile(io.BytesIO(build().data)).extractall(root)
    with RuntimeStandIn(forward(address)) as runtime, function(root, {**runtime.env, "LEGACY_RESPONSE": "1"}) as old:
        answer = old.invoke(image(encoded(picture()))).value

    (scores,) = json.loads(answer["body"])
    assert (answer["statusCode"], len(scores)) == (200, 3)
    assert sum(scores) == pytest.approx(1, abs=1e-3)


def test_a9_81_errors_by_their_real_causes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes 1 MB, has one worker, and gives up on a call (a network that hangs on white) after 6 s."""
    write_artifact(tmp_path / "model", tiny_network(hangs_on_white=True))
    settings = {
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": "1",
        "SAGEMAKER_MODEL_SERVER_WORKERS": "1",
        "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "6",
    }
    with (
        running_server(tmp_path, **settings) as server,
        RuntimeStandIn(forward(f"127.0.0.1:{server.port}")) as runtime,
        ThreadPoolExecutor(40) as callers,
    ):
        for name, value in runtime.env.items():
            monkeypatch.setenv(name, value)
        app = local.application(SageMakerEndpoint(ENDPOINT, read_timeout_s=30))

        def post(data: bytes) -> dict[str, Any]:
            return app.handle(local.function_url_event("POST", "/", {}, data), local.LocalContext())

        assert post(encoded(picture()))["statusCode"] == 200
        assert post(b"GIF8 and no more")["statusCode"] == 400
        assert post(encoded(Image.new("1", (9_000, 9_000))))["statusCode"] == 422
        assert post(encoded(Image.effect_noise((1500, 1500), 60)))["statusCode"] == 413
        answers = list(callers.map(post, [WHITE] * 40))

    busy = [answer for answer in answers if answer["statusCode"] == 503]
    assert {answer["statusCode"] for answer in answers} == {503, 504}
    assert {json.loads(answer["body"])["error"]["code"] for answer in busy} == {"overloaded"}
    assert all(answer["headers"]["Retry-After"] for answer in busy)


def test_a9_81_a_network_that_fails_is_a_502(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's 500, whose cause is a look-up beyond the end of a table, for photos that are white."""
    write_artifact(tmp_path / "model", _network_that_fails_on_white())
    with running_server(tmp_path) as server, RuntimeStandIn(forward(f"127.0.0.1:{server.port}")) as runtime:
        for name, value in runtime.env.items():
            monkeypatch.setenv(name, value)
        app = local.application(SageMakerEndpoint(ENDPOINT, read_timeout_s=30))
        good, bad = (app.handle(image(data), local.LocalContext()) for data in (encoded(picture()), WHITE))

    assert good["label"]
    assert (bad["error"]["status"], bad["error"]["code"]) == (502, "endpoint_failed")
    assert not [secret for secret in SECRETS if secret in json.dumps(bad)]


def _network_that_fails_on_white() -> bytes:
    nodes = [
        helper.make_node("GlobalAveragePool", ["photos"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["colours"]),
        helper.make_node("ReduceMin", ["colours"], ["darkest"], keepdims=0),
        helper.make_node("Greater", ["darkest", "bright"], ["is_white"]),
        helper.make_node("Cast", ["is_white"], ["place"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "place"], ["found"]),
        helper.make_node("Add", ["colours", "found"], ["logits"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(2.0, np.float32), "bright"),
        numpy_helper.from_array(np.zeros(1, np.float32), "table"),
    ]
    photos = helper.make_tensor_value_info("photos", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "fails", [photos], [logits], constants)
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(network.SerializeToString())


def test_make_page_shows_the_page_before_the_container(address: str) -> None:
    port = free_port()
    command = (sys.executable, LOCAL, "--container", f"http://{address}", "--port", str(port))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert f"http://127.0.0.1:{port}/" in process.stdout.readline()
            page = httpx.get(f"http://127.0.0.1:{port}/")
            answer = httpx.post(f"http://127.0.0.1:{port}/", content=encoded(Image.new("RGB", (64, 48), "blue")))
        finally:
            process.send_signal(signal.SIGINT)

    assert "What is in this photo?" in page.text
    assert answer.json()["label"] == "blue"
    assert process.returncode == 0


def test_make_page_says_what_to_do_where_no_container_answers() -> None:
    command = (sys.executable, LOCAL, "--container", f"127.0.0.1:{free_port()}")
    result = subprocess.run(command, capture_output=True, text=True)

    assert result.returncode == 1
    assert "no container answers" in result.stderr
    assert "docker run" in result.stderr


def test_make_page_says_what_to_do_where_its_port_is_taken(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = (sys.executable, LOCAL, "--container", address, "--port", str(port))
        result = subprocess.run(command, capture_output=True, text=True)

    assert result.returncode == 1
    assert result.stderr.startswith(f"the page cannot be shown on port {port} (Address already in use); choose")


def test_make_page_asks_the_container_itself(address: str) -> None:
    app: Application = local.application(local.ContainerEndpoint(address))

    answer = app.handle(image(encoded(picture())), local.LocalContext())
    refused = app.handle(image(b"this is no photo"), local.LocalContext())

    assert answer["predictions"]
    assert refused["error"]["code"] == "unreadable_photo"
