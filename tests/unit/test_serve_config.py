"""Environment to ServeConfig: every problem in one error."""

from __future__ import annotations

import pytest

from container.errors import ConfigError
from serve.config import ServeConfig


def test_a6_the_defaults_are_the_contract_s() -> None:
    config = ServeConfig.from_env({})
    assert (config.port, config.max_payload_mib, config.deadline_s) == (8080, 25, 55)
    assert config.queue_s + config.work_s == pytest.approx(55)
    assert config.queue_s == pytest.approx(10)


def test_a6_51_the_port_and_the_safe_range_are_obeyed() -> None:
    config = ServeConfig.from_env({"SAGEMAKER_BIND_TO_PORT": "9999", "SAGEMAKER_SAFE_PORT_RANGE": "21000-21999"})
    assert (config.port, config.safe_ports) == (9999, range(21000, 22000))


@pytest.mark.parametrize(
    ("env", "seconds"),
    [
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "2"}, 120),  # minutes, as in AWS's toolkits
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "30"}, 30),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "2", "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "30"}, 30),
    ],
)
def test_a6_62_the_deadline_has_two_names(env: dict[str, str], seconds: float) -> None:
    assert ServeConfig.from_env(env).deadline_s == seconds


def test_a8_73_a_batch_job_without_a_limit_gets_the_platform_s_own() -> None:
    assert ServeConfig.from_env({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "0"}).max_payload_mib == 100


@pytest.mark.parametrize("text", ["true", "True", "TRUE", "1"])
def test_a8_73_and_a7_67_modes_are_read_in_any_case(text: str) -> None:
    config = ServeConfig.from_env({"SAGEMAKER_BATCH": text, "SAGEMAKER_MULTI_MODEL": text})
    assert (config.multi_model, config.deadline_s) == (True, 590)


def test_a8_75_the_limits_of_asynchronous_endpoints_can_be_set() -> None:
    env = {"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "3600", "SAGEMAKER_MAX_PAYLOAD_IN_MB": "1024"}
    config = ServeConfig.from_env(env)
    assert (config.deadline_s, config.max_payload_mib) == (3600, 1024)


def test_every_problem_is_named_at_once() -> None:
    env = {
        "SAGEMAKER_BIND_TO_PORT": "80a",
        "SAGEMAKER_SAFE_PORT_RANGE": "9000",
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": "-1",
        "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "nan",
        "SAGEMAKER_MODEL_SERVER_WORKERS": "0",
        "KENNEL_SERVE_THREAD": "2",
        "SAGEMAKER_BATCH": "yes please",
    }
    with pytest.raises(ConfigError) as caught:
        ServeConfig.from_env(env)
    for name in env:
        assert name in str(caught.value)
    assert "did you mean KENNEL_SERVE_THREADS?" in str(caught.value)
