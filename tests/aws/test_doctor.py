"""`doctor`: one line for each thing that must be in place, each with what to do, none hiding another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from botocore.stub import Stubber

from deploy import doctor, quotas
from deploy.aws import Aws
from deploy.errors import DeployError
from tests.aws.conftest import PROFILES, Run, Sent


def test_an_empty_account_is_told_what_is_missing(run: Run, sent: Sent) -> None:
    answer = run("doctor")
    assert answer.code == 1
    assert "credentials: account 123456789012, region eu-west-3" in answer.output
    assert "base stack: stack 'kennel-dev-base' is not there: `base apply`" in answer.output
    assert "AWS said NoSuchBucket" in answer.output
    assert sent.writes == []


def test_a_base_stack_is_seen(run: Run, base: None) -> None:
    output = run("doctor").output
    assert "kennel-dev-base is CREATE_COMPLETE" in output
    assert "is private" in output


@pytest.mark.parametrize(
    ("total", "unreserved", "ours", "fine"),
    [(1000, 1000, 0, True), (10, 10, 0, False), (1000, 105, 0, False), (1000, 100, 10, True)],
)
def test_a_limit_of_concurrent_calls_that_is_too_low_is_noticed(
    aws: Aws, total: int, unreserved: int, ours: int, fine: bool
) -> None:
    stubber = Stubber(aws.client("lambda"))
    account: Any = {"ConcurrentExecutions": total, "UnreservedConcurrentExecutions": unreserved}
    stubber.add_response("get_account_settings", {"AccountLimit": account})
    if ours:
        stubber.add_response("get_function_concurrency", {"ReservedConcurrentExecutions": ours})
    else:
        stubber.add_client_error("get_function_concurrency", "ResourceNotFoundException", http_status_code=404)
    stubber.activate()
    check = {finding.what: finding for finding in doctor.examine(aws)}["concurrency for the function"]
    assert check.fine is fine, check.words
    assert ("Concurrent executions" in check.words) is not fine


@pytest.mark.parametrize(("quota", "fine"), [(6.0, True), (5.0, False)])
def test_an_endpoint_needs_room_for_two_fleets(aws: Aws, quota: float, fine: bool) -> None:
    """Three instances at most, and as many again while an update goes blue/green."""
    stubber = Stubber(aws.client("service-quotas"))
    found: Any = {"QuotaName": "ml.m5.xlarge for endpoint usage", "QuotaCode": "L-1", "Value": quota}
    stubber.add_response("list_service_quotas", {"Quotas": [found]})
    stubber.activate()
    if fine:
        assert "is 6; this needs 6" in quotas.require_endpoint(aws)
        return
    with pytest.raises(DeployError, match="is 5 in eu-west-3; this needs 6"):
        quotas.require_endpoint(aws)


def test_wrong_credentials_are_the_first_thing_that_is_said(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text(PROFILES.replace("123456789012", "999999999999"))
    assert "is for account 999999999999" in run("base", "apply", "--plan", profiles=file).error
