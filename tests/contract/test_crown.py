"""The same operation in two places: what evaluation in training sees of a photo is what serving answers for it.

After big_vision's remark that one would be surprised how much these two differ.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file

from container.artifact import WEIGHTS, load_manifest
from serve.predictor import Predictor
from tests.serving import running_server
from tests.support import odd_photos
from tests.training import SMALL, arguments, run_train, write_digits
from train.calibration import calibrate
from train.channels import Channels, Photo, list_photos, split_validation
from train.data import EvaluationPhotos, Normaliser, evaluation_loader
from train.model import build_resnet
from train.predictions import Predictions, predict
from train.quantization import answers

Logits = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree whose model folder holds a trained artifact, and whose folder `photos` the photos of odd kinds."""
    base = tmp_path_factory.mktemp("crown")
    write_digits(base / "input/data/training", per_class=24)
    code, output = run_train(base, *arguments(SMALL))
    assert code == 0, output
    (base / "photos").mkdir()
    for name, data in odd_photos().items():
        (base / "photos" / name).write_bytes(data)
    return base


@pytest.fixture(scope="module")
def evaluated(base: Path) -> dict[str, Logits]:
    """Logits of training's evaluation, in float32 torch, by photo."""
    manifest = load_manifest(base / "model")
    model = build_resnet(manifest.architecture, len(manifest.class_names))
    model.load_state_dict(load_file(base / "model" / WEIGHTS))
    photos = [Photo(path, 0) for path in sorted((base / "photos").iterdir())]
    spec = manifest.preprocessing
    loader = evaluation_loader(EvaluationPhotos(photos, spec), batch_size=5, workers=0)
    logits = predict(model, loader, Normaliser(spec, torch.device("cpu"))).logits
    return {photo.path.name: row for photo, row in zip(photos, logits, strict=True)}


@pytest.mark.parametrize("name", odd_photos())
def test_served_logits_are_evaluations(base: Path, evaluated: dict[str, Logits], name: str) -> None:
    served = Predictor.load(base / "model", threads=1).logits(odd_photos()[name])
    expected = evaluated[name]
    assert np.ptp(expected) > 0.01
    assert (np.abs(served - expected) <= 1e-4 * np.maximum(1, np.abs(expected))).all()


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree whose model folder holds an artifact that is served in int8."""
    base = tmp_path_factory.mktemp("int8")
    write_digits(base / "input/data/training", per_class=24)
    code, output = run_train(base, *arguments({**SMALL, "quantize": "always", "report": "false"}))
    assert code == 0, output
    return base


def answers_on_validation(base: Path, network: str) -> Predictions:
    sets = split_validation(list_photos(Channels(training=base / "input/data/training")), seed=0)
    return answers(base / "model" / network, sets.validation, load_manifest(base / "model").preprocessing)


@pytest.mark.parametrize(("precision", "tree"), [("float32", "base"), ("int8", "int8")])
def test_probabilities_are_fitted_on_the_logits_of_the_engine_that_ships(
    precision: str, tree: str, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(tree)
    manifest = load_manifest(base / "model")
    assert manifest.precision == precision
    fitted = calibrate(answers_on_validation(base, manifest.network), coverage=0.95)
    assert (manifest.temperature, manifest.confidence_threshold) == (fitted.temperature, fitted.threshold)


def test_int8s_figures_are_its_own(int8: Path) -> None:
    manifest = load_manifest(int8 / "model")
    own, float32 = (answers_on_validation(int8, network) for network in (manifest.network, "model.onnx"))
    assert manifest.metrics["int8:accuracy"] == own.accuracy
    assert calibrate(float32, coverage=0.95).temperature != manifest.temperature


@pytest.mark.parametrize("threads", [1, 2])
def test_int8s_logits_as_served_are_its_own_evaluations_bit_for_bit(base: Path, int8: Path, threads: int) -> None:
    manifest = load_manifest(int8 / "model")
    assert manifest.precision == "int8"
    photos = [Photo(path, 0) for path in sorted((base / "photos").iterdir())]
    evaluated = answers((int8 / "model" / manifest.network).read_bytes(), photos, manifest.preprocessing)
    predictor = Predictor.load(int8 / "model", threads=threads)
    for photo, logits in zip(photos, evaluated.logits, strict=True):
        np.testing.assert_array_equal(predictor.logits(photo.path.read_bytes()), logits)


def test_probabilities_over_http_are_evaluations(base: Path, evaluated: dict[str, Logits]) -> None:
    """The log of a ratio of two probabilities is a difference of logits, divided by the manifest's temperature."""
    temperature = load_manifest(base / "model").temperature
    with running_server(base) as server:
        for name, data in odd_photos().items():
            answer = server.classify(data, "application/octet-stream").json
            probabilities = {entry["index"]: entry["probability"] for entry in answer["predictions"]}
            assert len(probabilities) == len(evaluated[name])
            for index, probability in probabilities.items():
                found = np.log(probability / probabilities[0])
                expected = (evaluated[name][index] - evaluated[name][0]) / temperature
                assert found == pytest.approx(expected, abs=1e-3), name
