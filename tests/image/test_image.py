"""What the image is made of (docs/contract.md, A1), seen from inside and outside."""

from __future__ import annotations

import json

import pytest

from tests.containers import IMAGE, Engine

pytestmark = pytest.mark.image


@pytest.fixture(scope="module")
def config(engine: Engine) -> dict[str, object]:
    return dict(json.loads(engine("image", "inspect", IMAGE).stdout)[0]["Config"])


def test_a1_1_train_and_serve_are_on_path_without_an_entrypoint(config: dict[str, object]) -> None:
    assert not config.get("Entrypoint")
    assert config["Cmd"] == ["train"]


def test_the_only_train_is_ours(engine: Engine) -> None:
    found = engine.run("bash", "-c", "type -ap train serve").stdout.split()
    assert found == ["/opt/kennel/bin/train", "/opt/kennel/bin/serve"]
    everywhere = engine.run(
        "find", "/", "-xdev", "-name", "train", "-type", "f", "-perm", "/111", "-not", "-path", "/proc/*"
    )
    assert everywhere.stdout.split() == ["/opt/kennel/bin/train"]
    assert "train.__main__" in engine.run("cat", "/opt/kennel/bin/train").stdout


def test_a1_4_arbitrary_commands_work(engine: Engine) -> None:
    """A1 4 and 5: CreateTrainingJob and the SDK may replace the command; they need bash, python3 and pip."""
    script = (
        "import torch, torchvision, onnxruntime, boto3, sagemaker_training, mms, safetensors; print(torch.__version__)"
    )
    result = engine.run("bash", "-c", f"pip --version && python3 -c '{script}'")
    assert result.returncode == 0, result.stderr
    assert "2.14.1" in result.stdout


def test_a1_6_no_compiler_and_no_driver_ship(engine: Engine) -> None:
    result = engine.run(
        "bash", "-c", "type -p gcc cc g++ make ld nvidia-smi; ls /usr/lib/x86_64-linux-gnu | grep libcuda.so"
    )
    assert result.stdout == ""


def test_a1_7_nothing_lies_under_opt_ml(engine: Engine) -> None:
    assert engine.run("bash", "-c", "ls -A /opt/ml").returncode != 0


def test_a1_9_everything_is_readable_by_everybody(engine: Engine) -> None:
    """A8 76: serverless endpoints run the image as a user of their own."""
    files = "find /opt /usr/bin /usr/lib/jvm /etc/haproxy -xdev ! -type l ! -perm -o=r"
    folders = "find /opt -xdev -type d ! -perm -o=rx"
    assert engine.run("bash", "-c", f"{files}; {folders}").stdout == ""


def test_no_file_raises_its_callers_rights(engine: Engine) -> None:
    assert engine.run("find", "/", "-xdev", "-type", "f", "-perm", "/6000").stdout == ""


def test_labels_tell_sagemaker_what_the_image_can_do(config: dict[str, object]) -> None:
    labels = config["Labels"]
    assert isinstance(labels, dict)
    assert labels["com.amazonaws.sagemaker.capabilities.multi-models"] == "true"
    assert labels["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.revision"] != "unknown"


def test_installed_packages_agree_with_each_other(engine: Engine) -> None:
    result = engine.run("pip", "check")
    assert result.returncode == 0, result.stdout
