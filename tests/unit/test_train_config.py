"""Hyperparameters: texts in, typed values or one sentence out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from container.errors import ConfigError
from train.config import TrainConfig, describe, help_text, options, read_command_line, read_hyperparameters


def test_without_anything_the_defaults_hold() -> None:
    assert TrainConfig.from_hyperparameters({}) == TrainConfig()
    assert TrainConfig().architecture == "resnet50"


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"epochs": "3"}, "epochs", 3),
        ({"epochs": 3}, "epochs", 3),
        ({"batch-size": "16"}, "batch_size", 16),
        ({"batch_size": '"128"'}, "batch_size", 128),
        ({"batch_size": '"\\"128\\""'}, "batch_size", 128),
        ({"batch_size": "64.0"}, "batch_size", 64),
        ({"learning_rate": "1e-3"}, "learning_rate", 1e-3),
        ({"learning_rate": " 0.0012345678 "}, "learning_rate", 0.0012345678),
        ({"pretrained": "False"}, "pretrained", False),
        ({"pretrained": False}, "pretrained", False),
        ({"pretrained": "0"}, "pretrained", False),
        ({"architecture": '"resnet18"'}, "architecture", "resnet18"),
        ({"Architecture": "ResNet18"}, "architecture", "resnet18"),
    ],
)
def test_a2_12_the_ways_in_which_a_value_arrives(given: dict[str, object], name: str, value: object) -> None:
    found = getattr(TrainConfig.from_hyperparameters(given), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batchsize": "32"}, "'batchsize' is unknown; did you mean 'batch_size'?"),
        ({"zzz": "1"}, "'zzz' is unknown; known: architecture, "),
        ({"epochs": "three"}, "'epochs' is 'three'; expected a whole number"),
        ({"epochs": "2.5"}, "'epochs' is '2.5'; expected a whole number"),
        ({"epochs": "0"}, "'epochs' is 0; expected from 1 to 10000"),
        ({"epochs": None}, "'epochs' is 'null'; expected a whole number"),
        ({"epochs": ""}, "'epochs' is ''; expected a whole number"),
        ({"learning_rate": "NaN"}, "'learning_rate' is 'NaN'; expected a number"),
        ({"learning_rate": "inf"}, "'learning_rate' is 'inf'; expected a number"),
        ({"learning_rate": "-1"}, "'learning_rate' is -1; expected from 1e-08 to 10"),
        ({"pretrained": "maybe"}, "'pretrained' is 'maybe'; expected true or false"),
        ({"architecture": "resnet19"}, "'architecture' is 'resnet19'; expected one of resnet18, resnet34"),
        ({"batch_size": "[1,2]"}, "'batch_size' is '[1,2]'; expected a whole number"),
        ({"sagemaker_program": "x.py"}, "'sagemaker_program' asks for a script of your own"),
        ({"sagemaker_submit_directory": "s3://b/k"}, "'sagemaker_submit_directory' asks for a script of your own"),
    ],
)
def test_a_value_that_cannot_be_used_is_one_sentence(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        TrainConfig.from_hyperparameters(given)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_hyperparameters({"epochs": "0", "sede": "1"}, {"workers": "many"})
    assert all(name in str(caught.value) for name in ("epochs", "sede", "seed", "workers"))


def test_a2_13_reserved_keys_are_ignored() -> None:
    reserved = {"_tuning_objective_metric": "validation:accuracy", "sagemaker_job_name": "x", "sagemaker_region": "eu"}
    assert TrainConfig.from_hyperparameters(reserved) == TrainConfig()


def test_the_command_line_beats_the_file() -> None:
    given = {"epochs": "50", "seed": "7", "batch_size": "many"}
    config = TrainConfig.from_hyperparameters(given, read_command_line(["--epochs", "2", "--batch-size", "8"]))
    assert (config.epochs, config.seed, config.batch_size) == (2, 7, 8)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["--epochs", "3"], {"epochs": "3"}),
        (["--batch-size=16", "--flip"], {"batch-size": "16", "flip": "true"}),
        (["--flip", "--epochs", "3"], {"flip": "true", "epochs": "3"}),
        (["--learning-rate", "-1"], {"learning-rate": "-1"}),
    ],
)
def test_the_command_line(words: list[str], values: dict[str, str]) -> None:
    assert read_command_line(words) == values


@pytest.mark.parametrize("words", [["epochs=3"], ["--epochs", "3", "4"], ["-e", "3"], ["--"]])
def test_other_words_on_the_command_line_are_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="--name value"):
        read_command_line(words)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "hyperparameters.json"
    assert read_hyperparameters(path) == {}
    for content in ("{", "[1]"):
        path.write_text(content)
        with pytest.raises(ConfigError, match=re.escape(str(path))):
            read_hyperparameters(path)


def test_the_description_fits_sagemakers_limits() -> None:
    data = describe()
    assert {entry["name"] for entry in data["hyperparameters"]} == set(options())
    assert all(len(entry["Regex"]) <= 500 for entry in data["metric_definitions"])
    assert data["objective"]["MetricName"] in {entry["Name"] for entry in data["metric_definitions"]}
    ranges = data["parameter_ranges"]
    assert {"Name": "learning_rate", "MinValue": "0.0001", "MaxValue": "0.01", "ScalingType": "Logarithmic"} in ranges[
        "ContinuousParameterRanges"
    ]
    for entry in (*ranges["ContinuousParameterRanges"], *ranges["IntegerParameterRanges"]):
        TrainConfig.from_hyperparameters({entry["Name"]: entry["MinValue"]})
        TrainConfig.from_hyperparameters({entry["Name"]: entry["MaxValue"]})
    for entry in ranges["CategoricalParameterRanges"]:
        for value in entry["Values"]:
            TrainConfig.from_hyperparameters({entry["Name"]: value})


def test_the_help_names_every_hyperparameter() -> None:
    text = help_text()
    assert all(f"--{name.replace('_', '-')} " in text for name in options())
