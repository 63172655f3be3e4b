"""Old weights -> an artifact."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torchvision.models.resnet import ResNet

from container.artifact import load_manifest, verify_files
from train.import_weights import main
from train.model import build_resnet


def course_project(num_classes: int = 5) -> ResNet:
    """The usual head: 2048-128-classes."""
    torch.manual_seed(0)
    model = build_resnet("resnet50", num_classes)
    model.fc = nn.Sequential(nn.Linear(2048, 128), nn.ReLU(), nn.Linear(128, num_classes))
    model.eval()
    return model


def files(folder: Path, state: object, names: int) -> list[str]:
    torch.save(state, folder / "model.pth")
    (folder / "classes.txt").write_text("\n".join(f"breed {index}" for index in range(names)) + "\n\n")
    words = ["--weights", str(folder / "model.pth"), "--classes", str(folder / "classes.txt")]
    return [*words, "--model-dir", str(folder / "model"), "--image-size", "64"]


@pytest.mark.parametrize("names", [("0", "1", "2"), ("fc1", "relu", "output")])
def test_a_course_projects_network_is_served_as_it_answered(tmp_path: Path, names: tuple[str, ...]) -> None:
    model = course_project()
    model.fc = nn.Sequential(OrderedDict(zip(names, model.fc.children(), strict=True)))
    assert main([*files(tmp_path, model.state_dict(), 5), "--normalise", "false"]) == 0
    manifest = load_manifest(tmp_path / "model")
    verify_files(tmp_path / "model", manifest)
    assert (manifest.architecture, manifest.head, manifest.class_names[4]) == ("resnet50", "mlp", "breed 4")
    assert manifest.preprocessing.std == (1.0, 1.0, 1.0)
    photos = torch.rand(2, 3, 64, 64)
    session = onnxruntime.InferenceSession(tmp_path / "model" / "model.onnx", providers=["CPUExecutionProvider"])
    logits, features = session.run(["logits", "features"], {"photos": photos.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(logits, model(photos).numpy(), atol=1e-4)
    assert features.shape == (2, 2048)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet34"])
def test_plain_heads_and_other_architectures_are_recognised(tmp_path: Path, architecture: str) -> None:
    assert main(files(tmp_path, build_resnet(architecture, 3).state_dict(), 3)) == 0
    manifest = load_manifest(tmp_path / "model")
    assert (manifest.architecture, manifest.head) == (architecture, "linear")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--classes", "absent.txt"], "absent.txt cannot be read"),
        (["--clases", "x"], "'clases' is unknown; did you mean 'classes'?"),
        (["--image-size", "big"], "'image_size' is 'big'"),
        (["--weights", "absent.pth"], "absent.pth cannot be read"),
    ],
)
def test_what_cannot_be_imported_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    assert main([*files(tmp_path, build_resnet("resnet18", 3).state_dict(), 3), *change]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_model_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").write_text("a file is in the way")
    assert main(files(tmp_path, build_resnet("resnet18", 3).state_dict(), 3)) == 1
    assert f"error: {tmp_path / 'model'} cannot be written to" in capsys.readouterr().err


def test_a_head_whose_order_cannot_be_told_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_resnet("resnet18", 3)
    model.fc = nn.Sequential(
        OrderedDict([("second", nn.Linear(128, 64)), ("first", nn.Linear(512, 128)), ("last", nn.Linear(64, 3))])
    )
    assert main(files(tmp_path, model.state_dict(), 3)) == 1
    expected = "the head's layers (fc.second 128 to 64, fc.first 512 to 128, fc.last 64 to 3) do not follow each other"
    assert expected in capsys.readouterr().err
    model.fc = nn.Sequential(OrderedDict(block=nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 3))))
    assert main(files(tmp_path, model.state_dict(), 3)) == 1
    assert "the weights do not fit resnet18" in capsys.readouterr().err


def test_one_class_name_is_refused_as_serving_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(files(tmp_path, build_resnet("resnet18", 1).state_dict(), 1)) == 1
    assert "classes.txt holds 1 class name(s); it needs at least 2" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    """Notepad and PowerShell begin a text with one."""
    words = files(tmp_path, build_resnet("resnet18", 2).state_dict(), 2)
    (tmp_path / "classes.txt").write_text("ants\nbees\n", encoding="utf-8-sig")
    assert main(words) == 0
    assert load_manifest(tmp_path / "model").class_names == ("ants", "bees")


def test_a_name_that_is_given_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = files(tmp_path, build_resnet("resnet18", 5).state_dict(), 5)
    (tmp_path / "classes.txt").write_text("wasps\n\nbees\nants\n bees\nants\n")
    assert main(words) == 1
    assert "classes.txt holds the class name 'bees' in lines 3 and 5; each class" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_wrong_number_of_names_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(files(tmp_path, build_resnet("resnet18", 3).state_dict(), 4)) == 1
    assert "answers 3 classes, but 4 names are given" in capsys.readouterr().err
    assert main(files(tmp_path, {"weight": torch.zeros(1)}, 4)) == 1
    assert "no ResNet that is known" in capsys.readouterr().err
    assert main([]) == 1
