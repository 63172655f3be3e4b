"""Events that are not of our making: AWS's own models of them, and API Gateway as AWS's `sam` emulates it."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from aws_lambda_powertools.utilities.parser import models

from deploy.lambda_zip import build
from tests.lambda_runtime import EVENTS, RuntimeStandIn, event, function, lambda_service, photo_answer
from tests.support import encoded, free_port, picture, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
SAM = REPOSITORY / ".venv-sam/bin/python"
JPEG = encoded(picture(), "JPEG")
PNG = encoded(picture(), "PNG")
TIMEOUT_S = 60  # The first call waits for the function to start.
post = partial(httpx.post, timeout=TIMEOUT_S)

MODELS: dict[str, Any] = {
    "rest_api": models.APIGatewayProxyEventModel,
    "http_api": models.APIGatewayProxyEventV2Model,
    "function_url": models.LambdaFunctionUrlModel,
    "s3_created": models.S3Model,
    "s3_own_result": models.S3Model,
    "s3_removed": models.S3Model,
}


@pytest.mark.parametrize("name", sorted(path.stem for path in EVENTS.glob("*.json")))
def test_sample_events_have_the_shape_that_aws_gives_them(name: str) -> None:
    found = [model for prefix, model in MODELS.items() if name.startswith(prefix)]

    for model in found:
        model.model_validate(event(name))
    assert found or name.startswith("direct") or name == "s3_test"


@pytest.fixture(scope="module")
def runtime() -> Iterator[RuntimeStandIn]:
    with RuntimeStandIn(photo_answer(heat_map=PNG)) as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def apis(runtime: RuntimeStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The addresses of two gateways before one function: with all media types binary, and with none."""
    if not SAM.exists():
        pytest.skip("needs .venv-sam: python -m venv .venv-sam && .venv-sam/bin/pip install aws-sam-cli")
    root = tmp_path_factory.mktemp("lambda") / "task"
    zipfile.ZipFile(io.BytesIO(build().data)).extractall(root)
    with ExitStack() as stack:
        made = stack.enter_context(function(root, runtime.env))
        url = stack.enter_context(lambda_service(made)) + "/2015-03-31/functions/function/invocations"
        addresses = {}
        for name, binary in {"binary": ("*/*",), "text": ()}.items():
            port = free_port()
            log = stack.enter_context((root.parent / f"{name}.log").open("w"))
            command = (str(SAM), str(REPOSITORY / "tests/api_gateway.py"), str(port), url, *binary)
            env = {**os.environ, "SAM_CLI_TELEMETRY": "0"}
            gateway = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
            stack.callback(gateway.wait, 10)
            stack.callback(gateway.terminate)
            addresses[name] = f"http://127.0.0.1:{port}"
            wait_until(partial(_listens, port), timeout_s=60, what=f"the gateway ({log.name})")
        yield addresses


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("path", ["/rest", "/http-1", "/http-2"])
def test_photos_and_forms_pass_through_an_api(apis: dict[str, str], runtime: RuntimeStandIn, path: str) -> None:
    address = apis["binary"] + path
    runtime.calls.clear()
    photo = post(f"{address}?top_k=2", content=JPEG, headers={"Content-Type": "image/jpeg"})
    form = post(address, files={"file": ("rex.jpg", JPEG)}, data={"top_k": "2"})

    assert photo.json()["label"] == form.json()["label"] == "Affenpinscher"
    assert [(call.body, call.attributes) for call in runtime.calls] == [(JPEG, "top_k=2")] * 2


@pytest.mark.parametrize("path", ["/rest", "/http-1", "/http-2"])
@pytest.mark.parametrize("types", ["binary", "text"])
def test_json_and_the_page_pass_through_an_api(
    apis: dict[str, str], runtime: RuntimeStandIn, path: str, types: str
) -> None:
    address = apis[types] + path
    answer = post(address, json=event("direct_image"))
    refused = post(address, json={"imgae": ""})
    page = httpx.get(address, headers={"Accept": "text/html,*/*;q=0.8"}, timeout=TIMEOUT_S)

    assert answer.json()["label"] == "Affenpinscher"
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_request")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "What is in this photo?" in page.text


@pytest.mark.parametrize("path", ["/rest", "/http-1", "/http-2"])
def test_a_heat_map_comes_out_of_an_api_as_a_png(apis: dict[str, str], runtime: RuntimeStandIn, path: str) -> None:
    headers = {"Content-Type": "image/jpeg", "Accept": "image/png"}
    answer = post(apis["binary"] + path, content=JPEG, headers=headers)

    assert (answer.headers["Content-Type"], answer.content) == ("image/png", PNG)
