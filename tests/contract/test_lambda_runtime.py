"""The zip, unpacked as Lambda does, in real awslambdaric processes: cold, warm, provisioned, throttled, broken."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import httpx
import pytest
from botocore.config import Config

from deploy.lambda_zip import build
from tests.lambda_runtime import (
    AWS_ENV,
    SECRETS,
    Call,
    Environment,
    Function,
    Reply,
    RuntimeStandIn,
    ThrottledError,
    event,
    function,
    function_url,
    lambda_service,
    photo_answer,
    service_error,
)
from tests.support import encoded, free_port, picture, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """/var/task."""
    folder = tmp_path_factory.mktemp("lambda") / "task"
    zipfile.ZipFile(io.BytesIO(build().data)).extractall(folder)
    return folder


@pytest.fixture(scope="module")
def runtime() -> Iterator[RuntimeStandIn]:
    with RuntimeStandIn() as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def warm(root: Path, runtime: RuntimeStandIn) -> Iterator[Function]:
    with function(root, runtime.env) as made:
        yield made


def test_a_direct_invocation_through_boto3(warm: Function, runtime: RuntimeStandIn) -> None:
    with lambda_service(warm) as address:
        client = boto3.client(
            "lambda",
            endpoint_url=address,
            region_name="eu-west-1",
            aws_access_key_id="a",
            aws_secret_access_key="b",  # noqa: S106 - of a stand-in
        )
        answer = client.invoke(FunctionName="function", Payload=json.dumps(event("direct_image")))
        assert answer.get("FunctionError") is None
        assert json.loads(answer["Payload"].read())["label"] == "Affenpinscher"
        with pytest.raises(botocore.exceptions.ClientError, match="RequestTooLarge"):
            client.invoke(FunctionName="function", Payload=json.dumps({"image": "A" * 7_000_000}))


@pytest.mark.parametrize(
    "name", ["direct_image", "rest_api_photo", "rest_api_json", "http_api_photo", "http_api_form", "function_url_page"]
)
def test_sample_events_through_the_real_runtime(warm: Function, runtime: RuntimeStandIn, name: str) -> None:
    result = warm.invoke(event(name))

    assert not result.failed
    assert name == "direct_image" or result.value["statusCode"] == 200


def test_a_photo_through_a_function_url(warm: Function, runtime: RuntimeStandIn) -> None:
    with function_url(lambda value: warm.invoke(value).value) as address:
        response = httpx.post(f"{address}/", content=encoded(picture(), "JPEG"), headers={"Content-Type": "image/jpeg"})

    assert response.json()["label"] == "Affenpinscher"


BLOCKS = dict(
    re.findall(r"^```(python|bash)\n(.*?)^```", (REPOSITORY / "docs/lambda.md").read_text(), re.MULTILINE | re.DOTALL)
)


def test_the_documents_program_gets_its_label(warm: Function, tmp_path: Path) -> None:
    (tmp_path / "dog.jpg").write_bytes(encoded(picture(), "JPEG"))
    program = BLOCKS["python"].replace("kennel-dev-classify:live", "function")
    with lambda_service(warm) as address:
        env = {**os.environ, **AWS_ENV, "AWS_ENDPOINT_URL_LAMBDA": address}
        done = subprocess.run((sys.executable, "-c", program), cwd=tmp_path, env=env, capture_output=True, text=True)

    assert done.stdout == "Affenpinscher\n", done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_documents_curl_gets_its_label(warm: Function, tmp_path: Path) -> None:
    (tmp_path / "dog.jpg").write_bytes(encoded(picture(), "JPEG"))
    with function_url(lambda value: warm.invoke(value).value) as address:
        env = {**os.environ, **AWS_ENV, "AWS_SESSION_TOKEN": "token", "FUNCTION_URL": f"{address}/"}
        command = ("sh", "-c", BLOCKS["bash"])
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    assert json.loads(done.stdout)["label"] == "Affenpinscher"


def test_cold_and_warm_calls_are_told_apart_in_the_log(root: Path, runtime: RuntimeStandIn) -> None:
    with function(root, runtime.env) as made:
        made.invoke(event("direct_image"))
        made.invoke(event("direct_image"))

        (environment,) = made.environments
        assert [record["cold_start"] for record in environment.records] == [1, 0]


def test_the_trace_is_passed_on_to_the_endpoint(warm: Function, runtime: RuntimeStandIn) -> None:
    warm.invoke(event("direct_image"))

    assert runtime.calls[-1].headers["x-amzn-trace-id"].startswith("Root=1-6921a0f0-")


def test_errors_come_back_as_answers_not_as_function_errors(warm: Function, runtime: RuntimeStandIn) -> None:
    behave, runtime.behave = runtime.behave, service_error(500, "InternalFailure")
    result = warm.invoke(event("rest_api_photo"))
    runtime.behave = behave

    assert (result.failed, result.value["statusCode"]) == (False, 502)
    assert not [secret for secret in SECRETS if secret in result.payload.decode()]


@pytest.mark.parametrize("text", ["\ud800", "é", "\x00", "<script>"])
def test_whatever_is_quoted_back_can_be_sent_back(warm: Function, runtime: RuntimeStandIn, text: str) -> None:
    http = {**event("rest_api_json"), "body": text}
    values = [{"s3": text}, {text: 1}, {"url": f"https://{text}.example.com/"}, {"image": text}, text, http]
    results = [warm.invoke(value) for value in values]

    assert [result.failed for result in results] == [False] * len(values)
    assert {result.value.get("statusCode") or result.value["error"]["status"] for result in results} <= {400, 403}


def test_a_notification_that_must_be_tried_again_is_a_function_error(warm: Function, runtime: RuntimeStandIn) -> None:
    result = warm.invoke(event("s3_created"))  # No bucket is allowed.

    assert (result.failed, result.value["errorType"]) == (True, "RuntimeError")
    assert not [secret for secret in SECRETS if secret in result.payload.decode()]


def test_two_provisioned_environments_then_one_spill_over_then_throttling(root: Path, runtime: RuntimeStandIn) -> None:
    """Provisioned concurrency 2 and reserved concurrency 3, asked by four at once."""
    arrived = threading.Semaphore(0)
    go_on = threading.Event()
    answer = photo_answer()

    def wait(call: Call) -> Reply | None:
        arrived.release()
        go_on.wait(60)
        return answer(call)

    with function(root, runtime.env, provisioned=2, reserved=3) as made, ThreadPoolExecutor(4) as callers:
        runtime.behave = wait
        running = [callers.submit(made.invoke, event("direct_image")) for _ in range(3)]
        for _ in running:
            assert arrived.acquire(timeout=60)
        with pytest.raises(ThrottledError):
            made.invoke(event("direct_image"))
        go_on.set()
        labels = {future.result().value["label"] for future in running}
        runtime.behave = answer

        assert labels == {"Affenpinscher"}
        assert len(made.environments) == 3
        # Only the caller who spilled over waited for a start.
        assert [environment.records[0]["cold_start"] for environment in made.environments] == [0, 0, 1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ENDPOINT_NAME": ""}, "ENDPOINT_NAME is not set"),
        ({"TOP_K": "five"}, "TOP_K is 'five'"),
        ({"ALLOWED_BUCKET": "photos"}, "did you mean ALLOWED_BUCKETS?"),
    ],
)
def test_settings_that_cannot_be_used_end_the_init_with_a_sentence(
    root: Path, runtime: RuntimeStandIn, settings: dict[str, str], said: str
) -> None:
    environment = Environment(root, {**runtime.env, **settings})
    try:
        assert environment.exit_code == 1
        assert said in environment.log
        assert "Traceback" not in environment.log
    finally:
        environment.close()


def test_the_zip_is_the_same_whenever_it_is_built_and_holds_no_folder(tmp_path: Path) -> None:
    first, second = build(), build()

    assert first.data == second.data
    assert first.write_to(tmp_path).name == f"lambda-{first.sha256}.zip"
    names = zipfile.ZipFile(io.BytesIO(first.data)).namelist()
    assert {"classify.py", "page.html"} <= set(names)
    assert "local.py" not in names
    assert not [name for name in names if "/" in name]
    assert len(first.data) < 100_000


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["arm64", "x86_64"])
def test_pillow_is_packaged_for_lambdas_platform_on_request(architecture: str) -> None:
    data = build(with_pillow=True, architecture=architecture).data

    names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    machine = {"arm64": "aarch64"}.get(architecture, architecture)
    assert f"PIL/_imaging.cpython-313-{machine}-linux-gnu.so" in names
    assert len(data) < 10_000_000
    assert data == build(with_pillow=True, architecture=architecture).data


def _emulator() -> Path | None:
    """The runtime interface emulator that aws-sam-cli ships, where that is installed in .venv-sam."""
    architecture = {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
    pattern = f"lib/python3*/site-packages/samcli/local/rapid/aws-lambda-rie-{architecture}"
    return next((REPOSITORY / ".venv-sam").glob(pattern), None)


@pytest.mark.skipif(
    _emulator() is None, reason="needs .venv-sam: python -m venv .venv-sam && .venv-sam/bin/pip install aws-sam-cli"
)
def test_in_the_emulator_that_aws_ships(root: Path, runtime: RuntimeStandIn, tmp_path: Path) -> None:
    front, api = free_port(), free_port()
    addresses = (
        f"--runtime-interface-emulator-address=127.0.0.1:{front}",
        f"--runtime-api-address=127.0.0.1:{api}",
    )
    env = {
        "PATH": os.environ["PATH"],
        **runtime.env,
        "AWS_LAMBDA_FUNCTION_NAME": "function",
        "LAMBDA_TASK_ROOT": str(root),
    }
    command = (str(_emulator()), *addresses, sys.executable, "-m", "awslambdaric", "classify.handler")
    with (tmp_path / "log").open("w") as log:
        emulator = subprocess.Popen(command, cwd=root, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        client = boto3.client(
            "lambda",
            endpoint_url=f"http://127.0.0.1:{front}",
            region_name="eu-west-1",
            aws_access_key_id="a",
            aws_secret_access_key="b",  # noqa: S106 - of a stand-in
            config=Config(retries={"total_max_attempts": 1}),
        )

        def invoke(name: str) -> dict[str, Any] | None:
            try:
                payload = client.invoke(FunctionName="function", Payload=json.dumps(event(name)))["Payload"]
            except botocore.exceptions.EndpointConnectionError:
                return None
            answer: dict[str, Any] = json.loads(payload.read())
            return answer

        first = wait_until(partial(invoke, "direct_image"), timeout_s=30, what="the emulator")
        later = {name: invoke(name) or {} for name in ("rest_api_photo", "function_url_page", "direct_url")}

        assert first["label"] == "Affenpinscher"
        assert [later[name].get("statusCode") for name in later] == [200, 200, None]
        assert later["direct_url"]["error"]["code"] == "url_not_allowed"
    finally:
        emulator.terminate()
        emulator.wait(10)
