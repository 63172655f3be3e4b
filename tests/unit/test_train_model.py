"""Networks: pretrained weights, the ONNX graph, and the optimiser's settings."""

from __future__ import annotations

import email.message
import io
import tempfile
import urllib.request
import urllib.response
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models.resnet import ResNet

from container.errors import WeightsError
from train.config import ARCHITECTURES, TrainConfig
from train.graph import resnet_graph
from train.model import _download_cache, build_resnet, load_pretrained, read_state_dict
from train.recipe import build_optimizer, rate_factor


def lived_in(architecture: str, *, num_classes: int = 3) -> ResNet:
    """A network whose BatchNorms have seen something, in evaluation mode."""
    torch.manual_seed(0)
    model = build_resnet(architecture, num_classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn_like(module.bias) * 0.1
            module.running_var = torch.rand_like(module.bias) + 0.5
            nn.init.uniform_(module.weight, 0.2, 0.6)  # Keeps a hundred random layers from exploding.
    return model.eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_graph_answers_as_torch_does(architecture: str) -> None:
    model = lived_in(architecture)
    photos = torch.randn(2, 3, 40, 40)
    session = onnxruntime.InferenceSession(
        resnet_graph(model, image_size=40).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    logits, features, maps = session.run(["logits", "features", "maps"], {"photos": photos.numpy()})
    with torch.inference_mode():
        expected = model(photos).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1, np.abs(expected).max()))
    np.testing.assert_allclose(features, maps.mean((2, 3)), rtol=1e-4, atol=1e-5)
    head = model.fc.weight.detach().numpy()
    activation = np.einsum("kc,bchw->bkhw", head, maps).mean((2, 3)) + model.fc.bias.detach().numpy()
    np.testing.assert_allclose(activation, logits, atol=1e-4 * max(1, np.abs(logits).max()))


def test_the_graph_takes_any_number_of_photos() -> None:
    network = resnet_graph(lived_in("resnet18"), image_size=32).SerializeToString()
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    photos = np.random.default_rng(0).normal(size=(5, 3, 32, 32)).astype(np.float32)
    (together,) = session.run(["logits"], {"photos": photos})
    alone = np.concatenate([session.run(["logits"], {"photos": photo[None]})[0] for photo in photos])
    np.testing.assert_allclose(together, alone, atol=1e-4)


# Under which name a checkpoint keeps the weights beside the rest.
NESTED = {"lightning.pth": "state_dict", "tutorial.pth": "model_state_dict", "reference.pth": "model"}


@pytest.mark.parametrize("form", ["weights.safetensors", "resnet18.pth", *NESTED, "parallel.pth"])
def test_pretrained_weights_fill_all_but_the_head(tmp_path: Path, form: str) -> None:
    state = {name: value.contiguous() for name, value in lived_in("resnet18", num_classes=1000).state_dict().items()}
    if form.endswith(".safetensors"):
        save_file(state, tmp_path / form)
    elif form in NESTED:
        torch.save({NESTED[form]: state, "optimizer": {"state": {}}, "epoch": 3}, tmp_path / form)
    elif form == "parallel.pth":
        torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / form)
    else:
        torch.save(state, tmp_path / form)
    model = build_resnet("resnet18", 3)
    head = model.fc.weight.detach().clone()
    source = load_pretrained(model, "resnet18", channel=tmp_path)
    assert source == str(tmp_path / form)
    torch.testing.assert_close(model.layer4[1].bn2.running_var, state["layer4.1.bn2.running_var"])
    torch.testing.assert_close(model.fc.weight, head)


def test_the_images_weights_are_found_where_no_channel_is_given(tmp_path: Path) -> None:
    torch.save(lived_in("resnet18").state_dict(), tmp_path / "resnet18.pth")
    assert load_pretrained(build_resnet("resnet18", 2), "resnet18", channel=None, image=tmp_path).endswith("18.pth")


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    torch.save(lived_in("resnet34").state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(WeightsError, match="another architecture"):
        load_pretrained(build_resnet("resnet18", 2), "resnet18", channel=tmp_path)
    with pytest.raises(WeightsError, match="lacks layer1"):
        load_pretrained(build_resnet("resnet50", 2), "resnet50", channel=tmp_path)


@pytest.mark.parametrize("names", [[], ["a.pth", "b.pth"]])
def test_a_channel_must_hold_one_state_dict(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(WeightsError, match="found: "):
        load_pretrained(build_resnet("resnet18", 2), "resnet18", channel=tmp_path)


class Trap:
    """Unpickling this would run a program."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("trapped"),))  # type: ignore[return-value]


@pytest.mark.parametrize("content", ["pickle", "garbage", "list", "nested list"])
def test_what_is_no_state_dict_is_refused_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pth"
    if content == "garbage":
        path.write_bytes(b"garbage")
    else:
        torch.save({"pickle": Trap(), "list": [1, 2], "nested list": {"model": {"layers": [1, 2]}}}[content], path)
    with pytest.raises(WeightsError, match=r"model\.pth"):
        read_state_dict(path)
    assert not (tmp_path / "trapped").exists()


def test_a_whole_model_is_refused_in_a_sentence_of_ours(tmp_path: Path) -> None:
    """torch's own has several lines with escapes for terminals, and tells how to load it unsafely."""
    path = tmp_path / "model.pth"
    torch.save(build_resnet("resnet18", 2), path)
    with pytest.raises(WeightsError) as raised:
        read_state_dict(path)
    assert str(raised.value) == (
        f"{path} holds a whole model or other pickled objects, which are not loaded because they can run code, or no "
        "weights at all; save a state dict with torch.save(model.state_dict(), path) or as safetensors"
    )


def test_a_download_that_fails_names_the_three_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "_opener", None)  # urllib would keep these proxies for the tests that follow.
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    for proxy in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with pytest.raises(WeightsError, match=r"channel 'pretrained'.*image.*reaches download\.pytorch\.org"):
        load_pretrained(build_resnet("resnet18", 2), "resnet18", channel=None, image=tmp_path)


def test_a_download_goes_to_no_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container with a root user it may be root's, and nothing is to lie outside /tmp and /opt/ml."""
    monkeypatch.delenv("TORCH_HOME", raising=False)
    assert _download_cache() == Path(tempfile.gettempdir(), "torch")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert _download_cache() == tmp_path / "hub" / "checkpoints"


class _Forged(urllib.request.HTTPSHandler):
    """PyTorch's host, if it sent other bytes than those whose hash is in the name."""

    def https_open(self, request: urllib.request.Request) -> Any:
        content = io.BytesIO(b"not the weights")
        response: Any = urllib.response.addinfourl(content, email.message.Message(), request.full_url, 200)
        response.msg = "OK"
        return response


def test_a_download_of_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "_opener", urllib.request.build_opener(_Forged()))
    with pytest.raises(WeightsError, match="invalid hash value"):
        load_pretrained(build_resnet("resnet18", 2), "resnet18", channel=None, image=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_pretrained_layers_learn_slowly_and_norms_do_not_decay() -> None:
    config = TrainConfig(architecture="resnet18", learning_rate=1e-2, weight_decay=0.1)
    groups = build_optimizer(build_resnet("resnet18", 2), config, global_batch=32).param_groups
    settings = {(round(group["lr"], 6), group["weight_decay"]) for group in groups}
    assert settings == {(1e-3, 0.1), (1e-3, 0.0), (1e-2, 0.1), (1e-2, 0.0)}


def test_the_rate_warms_up_and_then_falls_along_a_cosine() -> None:
    rates = [rate_factor(step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rate_factor(100, 100) == pytest.approx(0, abs=1e-12)
    assert rate_factor(0, 1) == 1
