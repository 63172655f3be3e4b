"""What a ResNet as training writes it answers over HTTP: heat maps, embeddings, confidence, and answers too large."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.api import MAX_INSTANCES
from tests.resnets import write_resnet
from tests.serving import Answer, Server, running_server, write_artifact
from tests.support import encoded, picture

ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("base")
    write_resnet(base / "model")
    with running_server(base, SAGEMAKER_MAX_PAYLOAD_IN_MB="1", SAGEMAKER_MODEL_SERVER_WORKERS="1") as server:
        yield server


def test_a6_55_an_answer_over_the_limit_is_413_and_ends_no_worker(server: Server) -> None:
    """multi-model-server drops the worker that gives it more than max_response_size."""
    instances = [{"b64": base64.b64encode(encoded(picture(4, 3))).decode()}] * MAX_INSTANCES
    body, workers = json.dumps({"instances": instances}).encode(), server.workers()

    def ask(attributes: str) -> Answer:
        return server.classify(body, "application/json", headers={ATTRIBUTES: attributes})

    answer = ask("embed=true")
    assert (answer.status, answer.json["error"]["code"]) == (413, "answer_too_large")
    assert "SAGEMAKER_MAX_PAYLOAD_IN_MB" in answer.json["error"]["message"]
    assert len(ask("top_k=5").json["results"]) == MAX_INSTANCES
    assert server.workers() == workers


def test_a6_62_a_caller_who_accepts_anything_gets_the_default_type(tmp_path: Path) -> None:
    """curl and requests send */* of themselves."""
    write_artifact(tmp_path / "model")
    with running_server(tmp_path, SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT="text/csv") as server:
        assert server.classify(headers={"Accept": "*/*"}).headers["content-type"] == "text/csv"
        assert server.classify(headers={"Accept": "application/json, */*"}).json["label"]
