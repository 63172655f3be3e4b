"""What a ResNet as training writes it answers over HTTP: heat maps, embeddings, confidence, and answers too large."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from container.artifact import MANIFEST, load_manifest
from serve.api import MAX_INSTANCES
from serve.options import Options
from serve.prediction import Prediction
from serve.predictor import Predictor
from tests.resnets import write_resnet
from tests.serving import Answer, Server, running_server, write_artifact
from tests.support import encoded, picture

ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
PHOTOS = [encoded(picture(200, 150, seed), "JPEG", quality=95) for seed in (1, 2)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a model that is confident of one of PHOTOS and not of the other."""
    folder: Path = tmp_path_factory.mktemp("base")
    write_resnet(folder / "model")
    threshold = sum(found.classes[0].probability for found in predictions(folder, Options())) / len(PHOTOS)
    write_resnet(folder / "model", confidence_threshold=threshold)
    return folder


@pytest.fixture(scope="module")
def server(base: Path) -> Iterator[Server]:
    with running_server(base, SAGEMAKER_MAX_PAYLOAD_IN_MB="1", SAGEMAKER_MODEL_SERVER_WORKERS="1") as server:
        yield server


def predictions(base: Path, options: Options) -> list[Prediction]:
    """Of PHOTOS, in this process."""
    predictor = Predictor.load(base / "model", threads=1)
    return [predictor.predict(photo, options) for photo in PHOTOS]


def test_a_heat_map_comes_as_a_png_or_within_json(server: Server, base: Path) -> None:
    for photo, expected in zip(PHOTOS, predictions(base, Options(explain=True)), strict=True):
        png = server.classify(photo, headers={"Accept": "image/png"})
        assert (png.status, png.headers["content-type"]) == (200, "image/png")
        image = Image.open(io.BytesIO(png.body))
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (448, 448))
        assert png.body == expected.heat_map
        answer = server.classify(photo, headers={"Accept": "application/json", ATTRIBUTES: "explain=cam"}).json
        assert base64.b64decode(answer["heat_map"]["b64"]) == png.body
        assert answer["label"] == expected.classes[0].label
        assert server.classify(photo, headers={ATTRIBUTES: "explain=cam"}).body == png.body


def test_an_embedding_is_as_long_as_info_says(server: Server, base: Path) -> None:
    length = server.call("GET", "/info").json["embedding_length"]
    assert length == 512
    for photo, expected in zip(PHOTOS, predictions(base, Options(embed=True)), strict=True):
        found = server.classify(photo, headers={ATTRIBUTES: "embed=true"}).json["embedding"]
        assert found == pytest.approx(expected.embedding, abs=1e-5)
        assert len(found) == length
        assert "embedding" not in server.classify(photo).json


def test_an_answer_says_whether_the_model_is_confident(server: Server, base: Path) -> None:
    expected = [prediction.confident for prediction in predictions(base, Options())]
    assert sorted(str(confident) for confident in expected) == ["False", "True"]
    assert [server.classify(photo).json["confident"] for photo in PHOTOS] == expected


def test_a6_57_nothing_is_written_beside_the_model(server: Server, base: Path) -> None:
    """SageMaker mounts the folder read-only; here it can be written to."""
    assert server.classify(headers={ATTRIBUTES: "explain=cam"}).status == 200
    found = {str(path.relative_to(base / "model")) for path in (base / "model").rglob("*")}
    assert found == {MANIFEST, *load_manifest(base / "model").files}


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
