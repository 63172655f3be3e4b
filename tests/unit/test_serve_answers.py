"""What a predictor answers beside the classes: heat map, embedding, confidence; with a ResNet as training writes it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from container.artifact import NETWORK, WEIGHTS, Manifest, load_manifest
from container.errors import ArtifactError, NotAcceptableError, ServingError
from container.preprocessing import Float32Array, Preprocessing, preprocess
from container.probabilities import softmax
from serve import codec
from serve.api import JSON
from serve.engine import OnnxEngine
from serve.explanation import class_activation_map, draw
from serve.options import Options
from serve.predictor import Predictor
from serve.torch_engine import TorchEngine
from tests.resnets import SPEC, write_resnet
from tests.serving import write_artifact
from tests.support import encoded, picture
from train.calibration import calibrate
from train.channels import Photo
from train.predictions import Predictions
from train.quantization import quantize

PHOTO = encoded(picture(200, 150), "JPEG", quality=95)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torchvision.models.ResNet]:
    folder: Path = tmp_path_factory.mktemp("artifact")
    return folder, write_resnet(folder, nn.Linear(512, 5))


@pytest.fixture(scope="module")
def predictor(artifact: tuple[Path, torchvision.models.ResNet]) -> Predictor:
    return Predictor.load(artifact[0], threads=1)


def test_the_map_s_mean_and_the_bias_are_the_logit(
    artifact: tuple[Path, torchvision.models.ResNet], predictor: Predictor
) -> None:
    folder, model = artifact
    logits, maps = predictor.engine.run(preprocess(PHOTO, SPEC)[None], ["logits", "maps"])
    for index in range(5):
        heat = class_activation_map(maps[0], folder / WEIGHTS, index)
        assert heat.shape == (2, 2)
        assert heat.mean() + model.fc.bias[index].item() == pytest.approx(float(logits[0, index]), abs=1e-4)


def test_the_map_is_what_gradients_find(artifact: tuple[Path, torchvision.models.ResNet], predictor: Predictor) -> None:
    """An independent way to the same map, which knows nothing of the head: the logit's gradient by place."""
    folder, model = artifact
    kept: list[torch.Tensor] = []
    hook = model.layer4.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    logits = model(torch.from_numpy(preprocess(PHOTO, SPEC)[None]))
    hook.remove()
    (maps,) = predictor.engine.run(preprocess(PHOTO, SPEC)[None], ["maps"])
    for index in range(5):
        (gradient,) = torch.autograd.grad(logits[0, index], kept[0], retain_graph=True)
        expected = (gradient * kept[0]).sum(1)[0] * gradient[0, 0].numel()
        found = class_activation_map(maps[0], folder / WEIGHTS, index)
        np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-3)


def test_with_int8_the_map_is_the_int8_network_s_own(
    artifact: tuple[Path, torchvision.models.ResNet], predictor: Predictor, tmp_path: Path
) -> None:
    folder, model = artifact
    photos = [tmp_path / f"{seed}.png" for seed in range(4)]
    for seed, path in enumerate(photos):
        path.write_bytes(encoded(picture(80, 70, seed)))
    (tmp_path / "int8.onnx").write_bytes(
        quantize((folder / NETWORK).read_bytes(), [Photo(path, 0) for path in photos], SPEC)
    )
    array, names = preprocess(PHOTO, SPEC)[None], ["logits", "maps"]
    logits, maps = OnnxEngine(tmp_path / "int8.onnx", threads=1).run(array, names)
    heat = class_activation_map(maps[0], folder / WEIGHTS, 0)
    assert heat.mean() + model.fc.bias[0].item() == pytest.approx(float(logits[0, 0]), abs=0.02 * float(np.ptp(logits)))
    exact = class_activation_map(predictor.engine.run(array, names)[1][0], folder / WEIGHTS, 0)
    assert not np.array_equal(heat, exact)
    assert np.corrcoef(heat.ravel(), exact.ravel())[0, 1] > 0.8


def test_a_heat_map_is_the_photo_s_square_under_colours(predictor: Predictor) -> None:
    plain, explained = (predictor.predict(PHOTO, Options(explain=explain)) for explain in (False, True))
    assert plain.heat_map is None
    assert explained.heat_map is not None
    assert explained.classes == plain.classes
    image = Image.open(io.BytesIO(explained.heat_map))
    assert (image.format, image.size) == ("PNG", (448, 448))
    body = codec.encode([explained], predictor.manifest, many=False, content_type=JSON)
    assert json.loads(body.content)["heat_map"]["b64"]


def test_a_map_of_one_place_shows_nothing_and_says_so() -> None:
    with pytest.raises(NotAcceptableError, match="32 x 32 pixels as one place"):
        draw(PHOTO, np.ones((1, 1), np.float32), Preprocessing.for_image_size(32))


def test_an_embedding_is_what_the_network_pools(
    artifact: tuple[Path, torchvision.models.ResNet], predictor: Predictor
) -> None:
    _, model = artifact
    backbone = nn.Sequential(*list(model.children())[:-1])
    with torch.inference_mode():
        expected = backbone(torch.from_numpy(preprocess(PHOTO, SPEC)[None])).flatten().numpy()
    found = predictor.predict(PHOTO, Options(embed=True)).embedding
    assert predictor.embedding_length == 512
    np.testing.assert_allclose(np.array(found), expected, atol=1e-4)
    assert predictor.predict(PHOTO, Options()).embedding is None


def test_a_head_of_two_layers_has_no_map_and_says_so(tmp_path: Path) -> None:
    write_resnet(tmp_path, nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 5)))
    predictor = Predictor.load(tmp_path, threads=1)
    with pytest.raises(NotAcceptableError, match="one linear layer"):
        predictor.predict(PHOTO, Options(explain=True))
    assert predictor.predict(PHOTO, Options(embed=True)).embedding is not None


def test_a_network_without_these_outputs_says_so(tmp_path: Path) -> None:
    write_artifact(tmp_path)
    predictor = Predictor.load(tmp_path, threads=1)
    assert predictor.embedding_length is None
    for options in (Options(embed=True), Options(explain=True)):
        with pytest.raises(NotAcceptableError, match="gives no"):
            predictor.predict(PHOTO, options)


@pytest.mark.parametrize("layers", [1, 2])
def test_torch_answers_as_onnx_runtime_does(tmp_path: Path, layers: int) -> None:
    """On a CPU, in float32; the half precision of a GPU is not tested."""
    head = nn.Linear(512, 5) if layers == 1 else nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 5))
    write_resnet(tmp_path, head)
    onnx = Predictor.load(tmp_path, threads=1).engine
    rebuilt = TorchEngine(tmp_path, load_manifest(tmp_path), device="cpu")
    photos, names = preprocess(PHOTO, SPEC)[None], ["logits", "features", "maps"]
    for found, expected in zip(rebuilt.run(photos, names), onnx.run(photos, names), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert [rebuilt.width(name) for name in names] == [onnx.width(name) for name in names]
    assert rebuilt.outputs >= onnx.outputs


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_torch_in_half_precision_answers_nearly_the_same(tmp_path: Path, architecture: str) -> None:
    """What a GPU runs (bfloat16), here on a CPU, which does it in the same rounding and slowly."""
    write_resnet(tmp_path, architecture=architecture)
    exact, half = (
        TorchEngine(tmp_path, load_manifest(tmp_path), device="cpu", precision=precision).run(
            preprocess(PHOTO, SPEC)[None], ["logits", "features", "maps"]
        )
        for precision in (torch.float32, torch.bfloat16)
    )
    for found, expected in zip(half, exact, strict=True):
        assert found.dtype == np.float32
        assert not np.array_equal(found, expected)
        np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())


def test_a6_66_a_gpu_that_torch_cannot_use_is_said_in_a_sentence(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU that works")
    write_resnet(tmp_path)
    with pytest.raises(ServingError, match=r"a GPU that torch .* cannot use .* serve on CPUs"):
        Predictor.load(tmp_path, threads=1, device="cuda:0")


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    write_resnet(tmp_path, nn.Linear(512, 5))
    other = replace(load_manifest(tmp_path), architecture="resnet34")
    with pytest.raises(ArtifactError, match="not the weights of a resnet34"):
        TorchEngine(tmp_path, other, device="cpu")


def test_confident_is_the_manifest_s_threshold(predictor: Predictor) -> None:
    best = predictor.predict(PHOTO, Options()).classes[0].probability
    for threshold, expected in ((None, None), (best - 0.01, True), (best + 0.01, False)):
        judged = replace(predictor, manifest=replace(predictor.manifest, confidence_threshold=threshold))
        prediction = judged.predict(PHOTO, Options())
        assert prediction.confident is expected
        answer = json.loads(codec.encode([prediction], judged.manifest, many=False, content_type=JSON).content)
        assert answer.get("confident") is expected


@dataclass
class Fixed:
    """An engine whose logits are known beforehand."""

    logits: Float32Array
    outputs: frozenset[str] = frozenset({"logits"})

    def width(self, _output: str) -> int | None:
        return None

    def run(self, _photos: Float32Array, _outputs: Sequence[str]) -> list[Float32Array]:
        return [self.logits[None]]


def test_as_many_photos_of_validation_are_served_as_confident_as_were_asked_for(predictor: Predictor) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        found = Predictions(rng.normal(size=(10, 3)).astype(np.float32) * 3, rng.integers(3, size=10))
        fitted = calibrate(found, coverage=0.8)
        manifest = replace(
            predictor.manifest, temperature=fitted.temperature, confidence_threshold=fitted.threshold, top_k=1
        )
        manifest = Manifest.from_json(json.loads(json.dumps(manifest.to_json())))
        served = [Predictor(manifest, Fixed(logits), predictor.folder) for logits in found.logits]
        assert sum(bool(each.predict(PHOTO, Options()).confident) for each in served) == 8


def test_the_temperature_divides_the_logits(predictor: Predictor) -> None:
    cooled = replace(predictor, manifest=replace(predictor.manifest, temperature=2.0))
    expected = softmax(predictor.logits(PHOTO), 2.0)
    found = {item.index: item.probability for item in cooled.predict(PHOTO, Options(top_k=5)).classes}
    assert found == pytest.approx(dict(enumerate(expected.tolist())), abs=1e-6)
