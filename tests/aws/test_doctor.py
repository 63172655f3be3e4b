"""`doctor`: one line for each thing that must be in place, each with what to do, none hiding another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from botocore.stub import Stubber

from deploy import doctor
from deploy.aws import Aws
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


@pytest.mark.parametrize(("limit", "fine"), [(1000, True), (10, False)])
def test_a_new_accounts_limit_of_concurrent_calls_is_noticed(aws: Aws, limit: int, fine: bool) -> None:
    stubber = Stubber(aws.client("lambda"))
    account: Any = {"ConcurrentExecutions": limit, "UnreservedConcurrentExecutions": limit}
    stubber.add_response("get_account_settings", {"AccountLimit": account})
    stubber.activate()
    check = {finding.what: finding for finding in doctor.examine(aws)}["concurrency for the function"]
    assert check.fine is fine
    assert ("Concurrent executions" in check.words) is not fine


def test_wrong_credentials_are_the_first_thing_that_is_said(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text(PROFILES.replace("123456789012", "999999999999"))
    assert "is for account 999999999999" in run("base", "apply", "--plan", profiles=file).error
