"""The function's environment variables: what is taken, and how what is not is told."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from config import Config
from endpoint import CONNECT_TIMEOUT_S
from errors import ConfigError
from photos import can_scale

PAGE = Path(__file__).resolve().parents[2] / "docs/lambda.md"


def test_only_the_endpoint_must_be_named_and_then_nothing_is_fetched() -> None:
    config = Config.from_env({"ENDPOINT_NAME": "dogs"})

    assert config.allowed_buckets == config.allowed_url_hosts == config.cors_origins == frozenset()
    assert (config.top_k, config.legacy_response, config.result_prefix) == (None, False, "results/")


def test_every_variable_is_read() -> None:
    config = Config.from_env(
        {
            "ENDPOINT_NAME": "dogs-2",
            "ALLOWED_URL_HOSTS": "Images.Example.com, *.photos.example",
            "ALLOWED_BUCKETS": "photos,more.photos",
            "MAX_IMAGE_BYTES": "4000000",
            "TOP_K": "3",
            "LEGACY_RESPONSE": "True",
            "RESULT_PREFIX": "labels/",
            "CORS_ORIGINS": "https://shop.example.com",
            "FUNCTION_TIMEOUT_S": "29",
        }
    )

    assert config == Config(
        endpoint_name="dogs-2",
        allowed_url_hosts=frozenset({"images.example.com", "*.photos.example"}),
        allowed_buckets=frozenset({"photos", "more.photos"}),
        max_image_bytes=4_000_000,
        top_k=3,
        legacy_response=True,
        result_prefix="labels/",
        cors_origins=frozenset({"https://shop.example.com"}),
        function_timeout_s=29,
    )


def test_the_documents_table_has_the_codes_settings_and_defaults() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Settings")[2].partition("\n## ")[0]
    words: dict[object, str] = {MISSING: "required", None: "the model's", frozenset(): "none"}

    assert re.findall(r"^\| `([A-Z_]+)` \| `?(.+?)`? \|", table, re.MULTILINE) == [
        (field.name.upper(), words.get(field.default, str(field.default).lower())) for field in fields(Config)
    ]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ENDPOINT_NAME", "", "ENDPOINT_NAME is not set"),
        ("ENDPOINT_NAME", "arn:aws:sagemaker:eu-west-1:1:endpoint/dogs", "not its ARN"),
        ("ALLOWED_URL_HOSTS", "https://images.example.com", "without https://"),
        ("ALLOWED_URL_HOSTS", "*", "must be a host"),
        ("ALLOWED_URL_HOSTS", "*.com", "must be a host"),
        ("ALLOWED_URL_HOSTS", "localhost", "must be a host"),
        ("ALLOWED_URL_HOSTS", "127.0.0.1", "must be a host"),
        ("ALLOWED_BUCKETS", "s3://photos", "without s3://"),
        ("MAX_IMAGE_BYTES", "6 MB", "a whole number"),
        ("MAX_IMAGE_BYTES", "0", "from 1 to"),
        ("TOP_K", "-1", "a whole number"),
        ("LEGACY_RESPONSE", "yes", "true or false"),
        ("RESULT_PREFIX", "/", "ends with a slash"),
        ("RESULT_PREFIX", "results", "ends with a slash"),
        ("CORS_ORIGINS", "shop.example.com", "an origin such as"),
        ("FUNCTION_TIMEOUT_S", "3", "from 10 to 900"),
        ("ALLOWED_BUCKET", "photos", "did you mean ALLOWED_BUCKETS?"),
        ("ALLOWED_HOSTS", "a.example.com", "did you mean ALLOWED_URL_HOSTS?"),
        ("LEGACY_RESPONSES", "true", "did you mean LEGACY_RESPONSE?"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(name: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=name) as error:
        Config.from_env({"ENDPOINT_NAME": "dogs", name: value})

    assert said in str(error.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        Config.from_env({"TOP_K": "many", "LEGACY_RESPONSE": "perhaps"})

    assert all(name in str(error.value) for name in ("ENDPOINT_NAME", "TOP_K", "LEGACY_RESPONSE"))


def test_variables_of_lambda_and_of_the_shell_are_no_misspellings() -> None:
    strangers = {"AWS_REGION": "eu-west-1", "PATH": "/bin", "LANG": "C", "TZ": ":UTC", "PYTHONPATH": "/var/runtime"}

    assert Config.from_env({"ENDPOINT_NAME": "dogs", **strangers}).endpoint_name == "dogs"


@pytest.fixture
def no_pillow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "PIL", None)  # As in a zip that was built without it.
    can_scale.cache_clear()
    yield
    can_scale.cache_clear()


@pytest.mark.usefixtures("no_pillow")
def test_a9_80_the_socket_waits_70_s_for_the_60_s_that_a_container_has() -> None:
    assert Config(endpoint_name="dogs").read_timeout_s == 70
    assert Config(endpoint_name="dogs", allowed_buckets=frozenset({"photos"})).read_timeout_s == 60


def test_to_scale_a_photo_takes_time_too() -> None:
    assert Config(endpoint_name="dogs").read_timeout_s == 60


@pytest.mark.parametrize("timeout_s", [10, 29, 75, 900])
@pytest.mark.parametrize("hosts", [frozenset(), frozenset({"images.example.com"})])
def test_a9_80_all_that_may_take_time_fits_into_the_functions_time_out(timeout_s: int, hosts: frozenset[str]) -> None:
    config = Config(endpoint_name="dogs", function_timeout_s=timeout_s, allowed_url_hosts=hosts)

    # The photo is there, or refused, by then; then come one connection, one answer, and nothing else.
    assert config.fetch_timeout_s < config.latest_call_s
    assert config.read_timeout_s >= 2.5
    assert config.latest_call_s + CONNECT_TIMEOUT_S + config.read_timeout_s == timeout_s
    # Where a result is written to S3 instead, what is too late for that is not begun.
    assert config.latest_result_s + config.fetch_timeout_s == timeout_s
