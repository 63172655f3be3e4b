"""`train` as a process, with the real trainer of sagemaker-training: how it ends, and what it leaves."""

from __future__ import annotations

import json
import re
import shutil
import signal
import textwrap
from pathlib import Path

import pytest

from container.artifact import MANIFEST, WEIGHTS, load_manifest, verify_files
from container.contract import FAILURE_MAX_CHARS, METRICS, SageMakerPaths
from container.errors import ArtifactError
from tests.support import wait_until
from tests.training import SMALL, arguments, run_train, start_train, write_config, write_digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits") / "training", per_class=12)


@pytest.fixture
def paths(tmp_path: Path, digits: Path) -> SageMakerPaths:
    """A tree with a training channel and nothing else: no configuration, no output folder."""
    paths = SageMakerPaths(tmp_path)
    shutil.copytree(digits, paths.channel("training"))
    return paths


def assert_succeeded(paths: SageMakerPaths, code: int, output: str) -> None:
    assert code == 0, output
    verify_files(paths.model, load_manifest(paths.model))
    assert not paths.failure.exists()


def assert_failed(paths: SageMakerPaths, code: int, output: str, message: str) -> str:
    assert code == 1, output
    failure = paths.failure.read_text()
    assert re.match(message, failure), failure
    assert len(failure) <= FAILURE_MAX_CHARS
    assert f"error: {failure.splitlines()[0]}" in output
    assert not (paths.output / "success").exists()
    with pytest.raises(ArtifactError):
        load_manifest(paths.model)
    return failure


def test_a9_78_a_folder_of_photos_is_enough(paths: SageMakerPaths) -> None:
    code, output = run_train(paths.base, *arguments(SMALL))
    assert_succeeded(paths, code, output)
    assert "sagemaker-training-toolkit INFO     Reporting training SUCCESS" in output
    assert "float32 is served: 6 validation photos are too few to judge int8 by" in output
    manifest = load_manifest(paths.model)
    assert manifest.class_names == ("0", "1", "2")
    assert manifest.top_k == 5
    assert sorted(path.name for path in paths.input.iterdir()) == ["data"], "the user's input was written to"


def test_a2_11_to_17_sagemakers_files_with_every_channel(paths: SageMakerPaths) -> None:
    write_digits(paths.channel("validation"), per_class=4, skip=20)
    write_digits(paths.channel("test"), per_class=4, skip=30)
    (paths.data / "training-manifest").write_text("s3://bucket/prefix")
    reserved = {"sagemaker_job_name": '"x"', "_tuning_objective_metric": "y", "sagemaker_container_log_level": "info"}
    write_config(paths, {**SMALL, "epochs": '"2"', "top-k": "2", **reserved}, ["training", "validation", "test"])
    code, output = run_train(paths.base, "--epochs", "1")
    assert_succeeded(paths, code, output)
    manifest = load_manifest(paths.model)
    assert (manifest.top_k, manifest.hyperparameters["epochs"]) == (2, 1)
    for metric in METRICS:
        found = re.findall(rf"^{metric.regex}$", output, re.MULTILINE)
        assert len(found) == 1, (metric, output)
        assert len(re.findall(metric.regex, output)) == 1
    assert 0 <= manifest.metrics["test:accuracy"] <= 1
    assert "\r" not in output


def test_a3_29_a_misspelt_hyperparameter_is_one_sentence(paths: SageMakerPaths) -> None:
    write_config(paths, {"epoch": "3", "learning_rate": "nan"}, ["training"])
    code, output = run_train(paths.base)
    failure = assert_failed(paths, code, output, "hyperparameter 'epoch' is unknown; did you mean 'epochs'?")
    assert "learning_rate" in failure
    assert "Traceback" not in failure + output


def test_a3_29_photos_that_cannot_be_trained_on_are_one_sentence(paths: SageMakerPaths) -> None:
    for label in ("1", "2"):
        shutil.rmtree(paths.channel("training") / label)
    code, output = run_train(paths.base, *arguments(SMALL))
    failure = assert_failed(paths, code, output, "channel 'training' holds 1 class folder")
    assert "Traceback" not in failure + output


def test_a_corrupt_photo_is_named_and_left_out(paths: SageMakerPaths) -> None:
    victim = next(paths.channel("training").rglob("*.png"))
    victim.write_bytes(victim.read_bytes()[:60])
    code, output = run_train(paths.base, *arguments(SMALL))
    assert_succeeded(paths, code, output)
    assert f"warning: {victim} is left out: the photo is damaged" in output


def planted(function: str, statement: str) -> tuple[str, str]:
    """The program `train` with a statement in place of a function of train.run."""
    program = f"""
        import sys, torch
        import train.run

        def crash(*_):
            {statement}

        train.run.{function} = crash
        from train.__main__ import run
        run()
        """
    return "-c", textwrap.dedent(program)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("raise ValueError('no such thing')", "ValueError: no such thing"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("sys.exit(3)", "SystemExit: 3"),
        ("raise KeyError('x' * 3000)", "KeyError: 'xxx"),
        ("raise FileNotFoundError(2, 'gone')", "FileNotFoundError: "),
        ("pass", "there is no model folder|.* holds no manifest.json"),
    ],
)
def test_a3_30_no_end_but_an_artifact_passes_for_success(paths: SageMakerPaths, statement: str, message: str) -> None:
    """Crashes planted in the job; what the toolkit makes of each alone is exit 0 for the second, third and last."""
    code, output = run_train(paths.base, program=planted("run_job", statement))
    assert_failed(paths, code, output, message)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')",
            r"the GPU has too little memory for batch_size=16 and image_size=32: .* \(CUDA out of memory\. Tried",
        ),
        ("torch.empty(2**50)", "this machine has too little memory for batch_size=16 and .* can't allocate memory"),
        ("torch.ones(2, 3) @ torch.ones(2, 3)", "RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_too_little_memory_is_a_sentence_and_where_it_was_is_in_the_log(
    paths: SageMakerPaths, statement: str, message: str
) -> None:
    code, output = run_train(paths.base, *arguments(SMALL), program=planted("train_network", statement))
    assert_failed(paths, code, output, message)
    assert "in crash" in output


def test_a_signal_does_not_take_the_reason_of_a_failure_away(paths: SageMakerPaths) -> None:
    program = textwrap.dedent(
        """
        import os, signal
        import train.entrypoint
        import train.run

        def crash(*_):
            raise ValueError("no such thing")

        def text_of(error, text=train.entrypoint.failure_text):
            os.kill(os.getpid(), signal.SIGTERM)
            return text(error)

        train.run.run_job = crash
        train.entrypoint.failure_text = text_of
        from train.__main__ import run
        run()
        """
    )
    code, output = run_train(paths.base, program=("-c", program))
    assert_failed(paths, code, output, "ValueError: no such thing")


def test_stopped_while_int8_is_judged_float32_is_left(paths: SageMakerPaths) -> None:
    """Judging takes as long as the validation photos do, which may be more than a stop allows."""
    program = textwrap.dedent(
        """
        import os, signal
        import train.saving

        def judged(*arguments, quantize=train.saving.quantize):
            os.kill(os.getpid(), signal.SIGTERM)
            return quantize(*arguments)

        train.saving.quantize = judged
        from train.__main__ import run
        run()
        """
    )
    code, output = run_train(paths.base, *arguments({**SMALL, "quantize": "always"}), program=("-c", program))
    assert_succeeded(paths, code, output)
    assert load_manifest(paths.model).precision == "float32"


def test_stopped_while_it_is_tested_no_figure_of_some_photos_is_given(paths: SageMakerPaths) -> None:
    write_digits(paths.channel("test"), per_class=12, skip=30)
    program = textwrap.dedent(
        """
        import os, signal
        import train.job

        def predict(model, loader, *arguments, predict=train.job.predict, **settings):
            if len(loader.dataset) == 36:
                os.kill(os.getpid(), signal.SIGTERM)
            return predict(model, loader, *arguments, **settings)

        train.job.predict = predict
        from train.__main__ import run
        run()
        """
    )
    code, output = run_train(paths.base, *arguments(SMALL), program=("-c", program))
    assert_succeeded(paths, code, output)
    assert "SIGTERM received" in output
    assert "test:accuracy" not in output
    assert "test:accuracy" not in load_manifest(paths.model).metrics


@pytest.mark.parametrize("missing", ["hyperparameters.json", "inputdataconfig.json", "resourceconfig.json"])
def test_a_missing_file_of_the_configuration_has_its_default(paths: SageMakerPaths, missing: str) -> None:
    write_config(paths, SMALL, ["training"])
    (paths.config / missing).unlink()
    # The real thing up to the photos, which are missing: fast, and it shows that the toolkit called us.
    shutil.rmtree(paths.channel("training"))
    code, output = run_train(paths.base)
    assert_failed(paths, code, output, "(channel 'training'|there is no channel 'training')")


def test_the_input_is_left_as_it_was(paths: SageMakerPaths) -> None:
    """SageMaker mounts it read-only, which a folder's mode is not to root; a missing file is completed elsewhere."""

    def seen() -> dict[Path, tuple[int, bytes]]:
        """When everything in it was last written (a folder: what it holds), and files' contents."""
        found = [paths.input, *paths.input.rglob("*")]
        return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in found}

    write_config(paths, SMALL, ["training"])
    (paths.config / "resourceconfig.json").unlink()
    before = seen()
    code, output = run_train(paths.base)
    assert_succeeded(paths, code, output)
    assert seen() == before


def test_an_output_folder_that_cannot_be_made_is_named(paths: SageMakerPaths) -> None:
    paths.output.write_text("a file is in the way")
    code, output = run_train(paths.base, *arguments(SMALL))
    assert code == 1
    assert f"error: {paths.output_data} cannot be written to" in output


def test_what_an_earlier_run_left_passes_for_nothing_of_this_ones(paths: SageMakerPaths) -> None:
    """Warm pools, retries and plain `docker run` start again on the same folders."""
    paths.output.mkdir()
    paths.failure.write_text("an old failure")
    paths.model.mkdir()
    (paths.model / "model.int8.onnx").write_bytes(b"of an old artifact")
    (paths.output_data / "tensorboard").mkdir(parents=True)
    for name in ("report.html", "report.json", "trace.json", "tensorboard/events.out.tfevents.1.host", "notes.txt"):
        (paths.output_data / name).write_text("old")
    code, output = run_train(paths.base, *arguments({**SMALL, "report": "false"}))
    assert_succeeded(paths, code, output)
    assert not (paths.model / "model.int8.onnx").exists()
    left = {path.name for path in paths.output_data.rglob("*") if path.is_file()}
    assert left == {"doctor.json", "notes.txt"}
    program = "import train.run; train.run.run_job = print; from train.__main__ import run; run()"
    code, output = run_train(paths.base, program=("-c", program))
    assert code == 1, output
    assert "training ended without an artifact" in paths.failure.read_text()


def test_without_the_toolkit_training_says_so_and_goes_on(paths: SageMakerPaths) -> None:
    program = "import sys; sys.modules['sagemaker_training'] = None; from train.__main__ import run; run()"
    code, output = run_train(paths.base, *arguments(SMALL), program=("-c", program))
    assert_succeeded(paths, code, output)
    assert "training without it" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a3_32_stopped_before_there_is_anything_to_save(paths: SageMakerPaths, number: signal.Signals) -> None:
    with start_train(paths.base, *arguments({**SMALL, "epochs": "500"})) as process:
        wait_until(lambda: paths.model.exists() or None, timeout_s=30, what="the start of training")
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert paths.failure.read_text() == "stopped by a signal before there was anything to save"
    assert not (paths.model / MANIFEST).exists()


@pytest.mark.parametrize(("on_sagemaker", "left"), [(True, []), (False, [MANIFEST, WEIGHTS])])
def test_a3_32_a_stopped_job_does_not_leave_an_earlier_ones_artifact_for_its_own(
    paths: SageMakerPaths, on_sagemaker: bool, left: list[str]
) -> None:
    """SageMaker uploads what lies in the model folder; on one's own machine the last model is not to be lost."""
    if on_sagemaker:
        write_config(paths, {}, ["training"])
    paths.model.mkdir()
    for name in (MANIFEST, WEIGHTS):
        (paths.model / name).write_text("of an earlier job")
    staged = paths.model / ".incomplete-old"
    staged.mkdir()

    def prepared() -> bool | None:
        return (not staged.exists() if on_sagemaker else paths.output_data.exists()) or None

    with start_train(paths.base, *arguments({**SMALL, "epochs": "500"})) as process:
        wait_until(prepared, timeout_s=60, what="the start of training")
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert sorted(path.name for path in paths.model.iterdir() if path != staged) == left


def test_a3_32_stopped_in_the_middle_the_best_weights_are_saved(paths: SageMakerPaths) -> None:
    with start_train(paths.base, *arguments({**SMALL, "epochs": "500"})) as process:
        assert process.stdout is not None
        seen = ""
        while "validation:best_accuracy=" not in seen:
            line = process.stdout.readline()
            assert line, seen
            seen += line
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
    assert_succeeded(paths, process.returncode, seen + rest)
    assert "SIGTERM received" in rest
    assert load_manifest(paths.model).metrics["epoch"] >= 1


def test_describe_and_help_need_no_tree(tmp_path: Path) -> None:
    code, output = run_train(tmp_path, "--describe")
    assert code == 0
    assert {entry["name"] for entry in json.loads(output)["hyperparameters"]} >= {"epochs", "architecture"}
    code, output = run_train(tmp_path, "--help")
    assert (code, "--learning-rate" in output) == (0, True)
