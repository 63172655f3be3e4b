"""`doctor` and `tune` as processes, and `train` with what only a whole run shows."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from container.artifact import load_manifest, verify_files
from container.contract import SageMakerPaths
from tests.support import wait_until
from tests.training import SMALL, arguments, run_train, start_train, write_digits
from train.model import build_resnet

QUICK = {**SMALL, "workers": "0"}


@pytest.fixture
def paths(tmp_path: Path) -> SageMakerPaths:
    paths = SageMakerPaths(tmp_path)
    write_digits(paths.channel("training"), per_class=10)
    return paths


def pretrained(paths: SageMakerPaths) -> None:
    paths.channel("pretrained").mkdir()
    torch.manual_seed(0)
    torch.save(build_resnet("resnet18", 1000).state_dict(), paths.channel("pretrained") / "resnet18.pth")


def test_doctor_says_what_train_would_meet(paths: SageMakerPaths) -> None:
    photo = paths.channel("training") / "0" / "000.png"
    shutil.copy(photo, photo.with_name("copy.png"))
    (paths.channel("training") / "1" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    code, output = run_train(paths.base, program=("-m", "train.doctor_program"))
    assert code == 0, output
    assert "same file twice" in output
    found = json.loads((paths.output_data / "doctor.json").read_text())
    assert [Path(name).name for name in found["unreadable"]] == ["broken.jpg"]
    assert len(found["exact_duplicates"]) == 1
    code, output = run_train(paths.base, "--epocs", "1", program=("-m", "train.doctor_program"))
    assert (code, "did you mean 'epochs'" in output) == (1, True)


def test_doctor_names_a_folder_that_it_cannot_write_to(paths: SageMakerPaths) -> None:
    paths.output.write_text("a file is in the way")
    code, output = run_train(paths.base, program=("-m", "train.doctor_program"))
    assert (code, f"error: {paths.output_data} cannot be written to" in output) == (1, True), output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("module", "place"),
    [("train.doctor_program", "train.sets.open_photo_sets"), ("train.import_weights", "train.import_weights._import")],
)
def test_a_program_that_is_stopped_says_so(paths: SageMakerPaths, module: str, place: str) -> None:
    program = (
        f"import os, signal, {module}, {place.rpartition('.')[0]}; "
        f"{place} = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM); {module}.run()"
    )
    code, output = run_train(paths.base, program=("-c", program))
    assert (code, "error: stopped by a signal" in output) == (143, True), output


def test_strict_data_ends_training_where_a_set_leaks(paths: SageMakerPaths) -> None:
    shutil.copytree(paths.channel("training"), paths.channel("test"))
    code, output = run_train(paths.base, *arguments({**QUICK, "strict_data": "true"}))
    assert code == 1, output
    assert "lie in two sets" in paths.failure.read_text()


@pytest.mark.parametrize("strategy", ["head", "gradual"])
def test_a_strategy_from_pretrained_weights_leaves_everything(paths: SageMakerPaths, strategy: str) -> None:
    pretrained(paths)
    words = arguments(
        {**QUICK, "pretrained": "true", "strategy": strategy, "quantize": "always", "top_k": "2", "profile": "true"}
    )
    words += arguments({"flip": "false", "randaugment": "5"})
    code, output = run_train(paths.base, *words)
    assert code == 0, output
    manifest = load_manifest(paths.model)
    verify_files(paths.model, manifest)
    assert (manifest.network, manifest.precision) == ("model.int8.onnx", "int8")
    assert manifest.temperature > 0
    assert manifest.confidence_threshold is not None
    assert {"int8:accuracy", "int8:accuracy_float32", "calibration:ece_after"} <= set(manifest.metrics)
    assert (paths.output_data / "report.html").stat().st_size > 10_000
    report = json.loads((paths.output_data / "report.json").read_text())
    assert report["served"] == "int8"
    phases = {"network and its weights", "answers for test photos", "comparison of heat maps", "calibration"}
    assert phases < set(report["seconds"])
    assert "features of 24 photos" in output
    warned = re.findall(r"warning: (\w+)=\w+ is for steps of all layers, and strategy=head has none", output)
    assert warned == (["profile", "flip"] if strategy == "head" else [])
    assert re.search(r"features of 24 photos: .*% of it waiting for data", output)
    assert all(epoch["waiting"] > 0 for epoch in report["epochs"])
    if strategy == "gradual":
        assert json.loads((paths.output_data / "trace.json").read_text())["traceEvents"]


def test_what_ships_is_what_the_figures_allow(paths: SageMakerPaths) -> None:
    """quantize=auto, with as many validation photos as it takes to tell."""
    write_digits(paths.channel("validation"), per_class=70, skip=20)
    code, output = run_train(paths.base, *arguments({**QUICK, "epochs": "3", "report": "false"}))
    assert code == 0, output
    manifest = load_manifest(paths.model)
    verify_files(paths.model, manifest)
    figures = manifest.metrics
    drop = figures["int8:accuracy_float32"] - figures["int8:accuracy"]
    allowed = max(manifest.hyperparameters["max_accuracy_drop"] / 100, 1 / 210)
    ships = drop <= allowed + 1e-9 and figures["int8:agreement"] >= 0.98
    assert manifest.precision == ("int8" if ships else "float32"), output
    assert f"{manifest.precision} is served: int8 " in output
    assert ("model.int8.onnx" in manifest.files) == ships


def test_a_report_that_cannot_be_written_takes_no_artifact_with_it(paths: SageMakerPaths) -> None:
    (paths.output_data / "report.html").mkdir(parents=True)
    code, output = run_train(paths.base, *arguments(QUICK))
    assert code == 0, output
    verify_files(paths.model, load_manifest(paths.model))
    assert "warning: the report is not written: [Errno 21] Is a directory" in output
    assert not paths.failure.exists()


def test_a_frozen_network_of_noise_is_refused(paths: SageMakerPaths) -> None:
    code, output = run_train(paths.base, *arguments({**QUICK, "strategy": "head"}))
    assert (code, "it would freeze noise" in paths.failure.read_text()) == (1, True), output


def test_a_loss_that_is_no_number_ends_with_advice(paths: SageMakerPaths) -> None:
    """Pretrained weights with a NaN among them make every step's loss one."""
    pretrained(paths)
    file = paths.channel("pretrained") / "resnet18.pth"
    state = torch.load(file)
    state["conv1.weight"][0] = torch.nan
    torch.save(state, file)
    code, output = run_train(paths.base, *arguments({**QUICK, "pretrained": "true", "strategy": "full"}))
    assert code == 1, output
    assert "the loss is not a number" in paths.failure.read_text()


def test_doctor_shows_all_that_it_found_before_it_gives_up(paths: SageMakerPaths) -> None:
    for photo in (paths.channel("training") / "1").iterdir():
        photo.write_bytes(b"no photo")
    code, output = run_train(paths.base, program=("-m", "train.doctor_program"))
    assert (code, "has 1 class folder(s) without a readable photo (1)" in output) == (1, True), output
    assert re.search(r"classes without a photo +1  1", output), output
    found = json.loads((paths.output_data / "doctor.json").read_text())
    assert (found["empty_classes"], len(found["unreadable"])) == (["1"], 10)


def test_a_validation_channel_that_cannot_be_read_is_not_made_up_for(paths: SageMakerPaths) -> None:
    write_digits(paths.channel("validation"), per_class=2)
    for photo in paths.channel("validation").rglob("*.png"):
        photo.write_bytes(b"no photo")
    code, output = run_train(paths.base, *arguments(QUICK))
    assert code == 1, output
    assert paths.failure.read_text().startswith("channel 'validation' holds no photo that can be read")


@pytest.mark.slow
def test_a_search_that_is_stopped_runs_its_trial_again(paths: SageMakerPaths) -> None:
    words = arguments({**QUICK, "epochs": "20", "report": "false"})
    with start_train(paths.base, "--trials", "1", *words, program=("-m", "train.tune")) as process:
        log = paths.output_data / "trials" / "0" / "log"
        wait_until(
            lambda: (log.exists() and "training resnet18" in log.read_text()) or None, timeout_s=120, what="a trial"
        )
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert paths.failure.read_text().startswith("no trial came to its end")
    code, output = run_train(paths.base, "--trials", "1", *words, program=("-m", "train.tune"))
    assert code == 0, output
    assert not paths.failure.exists(), "what an earlier run said of itself is not this one's"
    one, two = json.loads((paths.output_data / "tuning.json").read_text())["trials"]
    assert (one["state"], two["state"]) == ("INTERRUPTED", "COMPLETE")
    assert one["hyperparameters"] == two["hyperparameters"]


@pytest.mark.slow
def test_tune_searches_goes_on_and_leaves_the_best(paths: SageMakerPaths) -> None:
    words = arguments({**QUICK, "seed": '"1"', "batch_size": "16"})
    code, output = run_train(paths.base, "--trials", "1", *words, program=("-m", "train.tune"))
    assert code == 0, output
    code, output = run_train(paths.base, "--trials", "2", *words, program=("-m", "train.tune"))
    assert code == 0, output
    assert "trial 1: " in output
    assert "trial 0: " not in output
    found = json.loads((paths.output_data / "tuning.json").read_text())
    one, two = found["trials"]
    assert one["hyperparameters"] != two["hyperparameters"]
    tuned = {"learning_rate", "weight_decay", "label_smoothing"}
    assert set(found["best"]["hyperparameters"]) == tuned
    manifest = load_manifest(paths.model)
    verify_files(paths.model, manifest)
    assert {name: manifest.hyperparameters[name] for name in tuned} == pytest.approx(found["best"]["hyperparameters"])
    assert {"report.html", "report.json", "doctor.json"} <= {path.name for path in paths.output_data.iterdir()}
    assert len(list((paths.output_data / "tensorboard").iterdir())) == 1
    code, output = run_train(paths.base, "--trials", "2", *words, "--epochs", "2", program=("-m", "train.tune"))
    assert code == 1, output
    assert "holds a search with epochs=1; this one has epochs=2" in paths.failure.read_text()
    (paths.channel("training") / "0" / "000.png").unlink()
    code, output = run_train(paths.base, "--trials", "2", *words, program=("-m", "train.tune"))
    assert code == 1, output
    assert "holds a search with data=" in paths.failure.read_text()


def test_trials_share_what_the_frozen_layers_answer(paths: SageMakerPaths) -> None:
    pretrained(paths)
    given = {**QUICK, "pretrained": "true", "strategy": "head", "quantize": "never", "report": "false"}
    words = arguments(given)
    code, output = run_train(paths.base, "--trials", "2", *words, program=("-m", "train.tune"))
    assert code == 0, output
    first, second = ((paths.output_data / "trials" / str(number) / "log").read_text() for number in range(2))
    assert "kept from an earlier run" not in first
    computed = re.findall(r"features of (\d+) photos", first)
    assert len(computed) == 2
    assert re.findall(r", (\d+) of them kept from an earlier run", second) == computed


def test_tune_says_why_no_trial_can_succeed(paths: SageMakerPaths) -> None:
    paths.channel("pretrained").mkdir()
    code, output = run_train(paths.base, *arguments({**QUICK, "pretrained": "true"}), program=("-m", "train.tune"))
    reason = f"channel 'pretrained' must hold one state dict of resnet18 as .safetensors or .pth in {paths.data}/pretr"
    assert code == 1, output
    assert [f"trial {number}: failed: {reason}" in output for number in range(3)] == [True, True, False], output
    assert f": {reason}" in paths.failure.read_text()


def test_tune_refuses_what_train_would(paths: SageMakerPaths) -> None:
    code, output = run_train(paths.base, "--trials", "none", program=("-m", "train.tune"))
    assert (code, "error: option 'trials' is 'none'; expected a whole number" in output) == (1, True)
    code, output = run_train(paths.base, "--epocs", "1", program=("-m", "train.tune"))
    assert (code, "did you mean 'epochs'" in output) == (1, True)


def test_tune_says_in_a_sentence_that_its_database_is_none(paths: SageMakerPaths) -> None:
    paths.output_data.mkdir(parents=True)
    (paths.output_data / "tuning.db").write_text("no database " * 100)
    code, output = run_train(paths.base, program=("-m", "train.tune"))
    assert code == 1, output
    assert "tuning.db cannot go on (file is not a database)" in paths.failure.read_text()
    assert "Traceback" not in output
