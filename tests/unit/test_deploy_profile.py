"""Profiles: one file, every mistake in it named at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.errors import DeployError
from deploy.profile import STAGES, Profile


def _load(tmp_path: Path, text: str, stage: str = "dev") -> Profile:
    file = tmp_path / "profiles.toml"
    file.write_text(text)
    return Profile.load(stage, file)


@pytest.mark.parametrize("stage", STAGES)
def test_the_profiles_that_ship_can_be_used(stage: str) -> None:
    profile = Profile.load(stage)
    assert profile.prefix == f"kennel-{stage}"
    assert profile.function.provisioned_concurrency == 2
    assert (profile.endpoint.max_instances, profile.endpoint.scale_in_cooldown_s) == (3, 300)


def test_a_stage_goes_before_what_is_shared(tmp_path: Path) -> None:
    shared = '[shared]\nname = "a1"\n[shared.endpoint]\nmin_instances = 2\nmax_instances = 4\n'
    text = f"{shared}[dev.endpoint]\nmin_instances = 3\n"
    profile = _load(tmp_path, text)
    assert (profile.name, profile.endpoint.min_instances, profile.endpoint.max_instances) == ("a1", 3, 4)


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    text = """
[shared]
nam = "kennel"
account = "12"
pull_accounts = ["all"]
[dev]
region = 3
[dev.endpoint]
variant = "fast"
max_instances = 0
[dev.function]
provisioned_concurrency = 20
timeout_s = 5
top_k = -1
result_prefix = "/results"
[dev.training]
spot = "yes"
subnets = ["subnet-1"]
[qa]
"""
    with pytest.raises(DeployError) as raised:
        _load(tmp_path, text)
    for words in (
        "stage 'qa' is none of dev, staging, prod",
        "setting 'nam' is unknown; did you mean 'name'?",
        "account '12' must be 12 digits",
        "account 'all' must be 12 digits",
        "pull_accounts are of the stage that has owns_repository = true",
        "setting 'region' is 3; it must be a string",
        "endpoint.variant 'fast' must be one of",
        "endpoint.max_instances 0 is below min_instances 1",
        "provisioned_concurrency 20 does not fit into reserved_concurrency 10",
        "function.timeout_s 5 must be from 10 to 900",
        "function.top_k -1 must be from 1 to 9999, or 0 for the model's",
        "function.result_prefix '/results' must be a folder's key that ends with a slash",
        "setting 'training.spot' is 'yes'; it must be true or false",
        "subnets and training.security_groups go together",
    ):
        assert words in str(raised.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("[dev", "is not TOML"), ("[prod]", r"has no table \[dev\]; it has prod")],
)
def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DeployError, match=words):
        _load(tmp_path, text)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="is not there: it holds the stages"):
        Profile.load("dev", tmp_path / "none.toml")
