"""`docker run kennel train` on the real engine: what goes in, what comes out, how it ends (contract.md, A1 to A3)."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from container.artifact import load_manifest, verify_files
from container.contract import FAILURE_MAX_CHARS, VALIDATION_ACCURACY, SageMakerPaths, metric_definitions
from tests.containers import Container, Engine, serving
from tests.image.conftest import QUICK
from tests.support import wait_until

pytestmark = pytest.mark.image


@pytest.fixture
def tree(tmp_path: Path, digits: Path) -> SageMakerPaths:
    """/opt/ml as SageMaker lays it out: the digits as the training channel, and no configuration yet."""
    paths = SageMakerPaths(tmp_path)
    for folder in (paths.config, paths.model, paths.output_data, paths.checkpoints):
        folder.mkdir(parents=True)
    shutil.copytree(digits / "training", paths.channel("training"))
    return paths


def configure(paths: SageMakerPaths, hyperparameters: Mapping[str, str], *channels: str) -> None:
    paths.hyperparameters.write_text(json.dumps(hyperparameters))
    paths.input_data_config.write_text(
        json.dumps({name: {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"} for name in channels})
    )
    hosts = {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"}
    paths.resource_config.write_text(json.dumps(hosts))


def mounted(paths: SageMakerPaths, *options: str) -> tuple[str, ...]:
    return ("--volume", f"{paths.base}:/opt/ml", *options)


def test_a9_78_only_a_folder_of_photos_is_needed(artifact: Path) -> None:
    manifest = load_manifest(artifact)
    verify_files(artifact, manifest)
    assert manifest.class_names == tuple("0123456789")
    assert manifest.architecture == "resnet18"
    assert manifest.preprocessing.crop_size == 32


def test_a2_11_to_17_sagemakers_own_files_are_obeyed(engine: Engine, tree: SageMakerPaths, digits: Path) -> None:
    shutil.copytree(digits / "held-out", tree.channel("validation"))
    (tree.data / "training-manifest").write_text("SageMaker puts such files beside the channels")
    hyperparameters = {
        "architecture": '"resnet18"',
        "pretrained": "false",
        "image-size": "32",
        "epochs": "1",
        "batch_size": '"32"',
        "_tuning_objective_metric": "validation:accuracy",
        "sagemaker_job_name": "digits",
        "sagemaker_region": "eu-west-1",
    }
    configure(tree, hyperparameters, "training", "validation")
    result = engine.run("train", options=mounted(tree, "--network", "none"))
    assert result.returncode == 0, result.stdout + result.stderr
    verify_files(tree.model, load_manifest(tree.model))
    assert not tree.failure.exists()
    logs = result.stdout
    for metric in metric_definitions():
        if not metric["Name"].startswith("test:"):
            assert re.search(metric["Regex"], logs), metric
    assert len(re.findall(VALIDATION_ACCURACY.regex, logs)) == 1
    assert "\r" not in logs


@pytest.mark.parametrize(
    ("hyperparameters", "sentences"),
    [
        ({"batchsize": "32"}, ["batchsize", "did you mean", "batch_size"]),
        ({"epochs": "NaN", "learning_rate": "-1", "sede": "1"}, ["epochs", "learning_rate", "sede"]),
        ({"sagemaker_program": "train.py"}, ["sagemaker_program"]),
        ({"architecture": "resnet19"}, ["resnet19", "resnet18"]),
    ],
)
def test_a3_29_bad_hyperparameters_end_with_one_sentence(
    engine: Engine, tree: SageMakerPaths, hyperparameters: dict[str, str], sentences: list[str]
) -> None:
    configure(tree, hyperparameters, "training")
    result = engine.run("train", options=mounted(tree))
    assert result.returncode not in (0, 143)
    failure = tree.failure.read_text()
    assert len(failure) <= FAILURE_MAX_CHARS
    assert all(sentence in failure for sentence in sentences), failure
    assert "Traceback" not in failure


def test_the_command_line_beats_the_file(engine: Engine, tree: SageMakerPaths) -> None:
    configure(tree, {"epochs": "50", "architecture": "resnet50"}, "training")
    result = engine.run("train", *QUICK, options=mounted(tree))
    assert result.returncode == 0, result.stdout + result.stderr
    assert load_manifest(tree.model).hyperparameters["epochs"] == 1


@pytest.mark.parametrize("classes", [0, 1])
def test_too_few_classes_are_an_error_that_says_the_layout(engine: Engine, tree: SageMakerPaths, classes: int) -> None:
    for folder in sorted(tree.channel("training").iterdir())[classes:]:
        shutil.rmtree(folder)
    result = engine.run("train", *QUICK, options=mounted(tree))
    assert result.returncode != 0
    assert "training" in tree.failure.read_text()
    assert not (tree.model / "manifest.json").exists()


def test_a_corrupt_photo_is_named_and_left_out(engine: Engine, tree: SageMakerPaths) -> None:
    victim = next(tree.channel("training").rglob("*.png"))
    victim.write_bytes(victim.read_bytes()[:60])
    result = engine.run("train", *QUICK, options=mounted(tree))
    assert result.returncode == 0, result.stdout + result.stderr
    assert victim.name in result.stdout + result.stderr


def test_pretrained_weights_that_cannot_be_had_name_the_three_ways(engine: Engine, tree: SageMakerPaths) -> None:
    """A3 39: under network isolation nothing can be downloaded."""
    result = engine.run("train", "--architecture", "resnet18", options=mounted(tree, "--network", "none"))
    assert result.returncode != 0
    failure = tree.failure.read_text()
    assert all(way in failure for way in ("pretrained", "channel", "image", "download")), failure


def test_real_photos_are_trained_on_and_the_result_is_served(engine: Engine, real_photos: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    options = ("--volume", f"{real_photos}:/opt/ml/input/data/training:ro", "--volume", f"{tmp_path}:/opt/ml/model")
    words = ("--architecture", "resnet18", "--pretrained", "false", "--image-size", "64", "--epochs", "1")
    result = engine.run("train", *words, options=options)
    assert result.returncode == 0, result.stdout + result.stderr
    classes = load_manifest(tmp_path).class_names
    photos = sorted(path for path in real_photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[::40]
    assert photos
    with serving(engine, tmp_path) as server:
        for photo in photos:
            answer = server.post(photo.read_bytes(), "image/jpeg")
            assert answer.status_code == 200, photo
            assert answer.json()["label"] in classes


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_trained(
    engine: Engine, tree: SageMakerPaths
) -> None:
    result = engine.run("train", *QUICK, options=mounted(tree, "--volume", f"{tree.model}:/opt/ml/model:ro"))
    assert result.returncode == 1
    assert tree.failure.read_text().startswith("/opt/ml/model cannot be written to (Read-only file system)")
    assert "epoch 1" not in result.stdout


def test_a_read_only_root_without_tmp_is_one_sentence(engine: Engine, tree: SageMakerPaths) -> None:
    result = engine.run("train", *QUICK, options=mounted(tree, "--read-only"))
    assert result.returncode == 1
    assert tree.failure.read_text().startswith("no temporary folder can be written to")
    assert "Traceback" not in result.stdout + result.stderr


def test_a1_9_any_user_can_train_with_a_read_only_root(engine: Engine, tree: SageMakerPaths) -> None:
    """And with input that is read-only as a whole, though two files of its configuration are missing."""
    tree.hyperparameters.write_text(json.dumps({"report": "false"}))
    for folder in (tree.model, tree.output, tree.output_data, tree.checkpoints):
        folder.chmod(0o777)
    mounts = [
        *("--volume", f"{tree.input}:/opt/ml/input:ro"),
        *("--volume", f"{tree.model}:/opt/ml/model", "--volume", f"{tree.output}:/opt/ml/output"),
        *("--user", "65534:65534", "--read-only", "--tmpfs", "/tmp"),
    ]
    result = engine.run("train", *QUICK, options=mounts)
    assert result.returncode == 0, result.stdout + result.stderr
    verify_files(tree.model, load_manifest(tree.model))
    assert load_manifest(tree.model).hyperparameters["report"] is False


def test_a3_32_sigterm_saves_a_valid_artifact(engine: Engine, tree: SageMakerPaths) -> None:
    endless = (*QUICK[:-4], "--epochs", "500", "--batch-size", "16")
    with engine.started("train", *endless, options=mounted(tree)) as training:
        wait_until(lambda: "validation:accuracy=" in training.logs(), timeout_s=120, what="the first epoch")
        assert training.stop(grace_s=60) == 0, training.logs()
    verify_files(tree.model, load_manifest(tree.model))


@pytest.mark.slow
def test_dockers_64_mb_of_shared_memory_are_warned_of_and_made_do_with(engine: Engine, tree: SageMakerPaths) -> None:
    """A loader process that fills /dev/shm dies of SIGBUS; batches of 32 photos of 224 pixels leave room for some."""
    words = [*QUICK, "--image-size", "224", "--batch-size", "32", "--workers", "6"]
    result = engine.run("train", *words, options=mounted(tree))
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(
        r"warning: /dev/shm has 6[0-9] MB free, which is room for 1 of 6 loader processes; .* --shm-size", result.stdout
    ), result.stdout


def handles_sigterm(container: Container) -> bool:
    """As PID 1 a process ignores the signals that it does not handle; Linux shows the handled ones as a mask."""
    mask = re.search(r"SigCgt:\s*([0-9a-f]+)", container.exec("cat", "/proc/1/status").stdout)
    return mask is not None and bool(int(mask[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_a3_35_sigterm_before_there_is_anything_to_save_is_143(engine: Engine, tree: SageMakerPaths) -> None:
    with engine.started("train", *QUICK, options=mounted(tree)) as training:
        wait_until(lambda: handles_sigterm(training), timeout_s=30, what="a handler of SIGTERM in PID 1")
        assert training.stop(grace_s=60) == 143
    assert tree.failure.read_text()
    assert not (tree.model / "manifest.json").exists()
