"""Stand-ins for AWS: moto behind real HTTP, credentials that reach nothing else, and a record of what was sent."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from typer.testing import CliRunner

from deploy.aws import Aws
from deploy.cli import app
from deploy.errors import DeployError
from deploy.profile import Profile
from tests.aws.model_check import violations
from tests.support import free_port, wait_until

REGION = "eu-west-3"
ACCOUNT = "123456789012"
BUCKET = f"kennel-dev-{ACCOUNT}-{REGION}"
PROFILES = f"""
[shared]
name = "kennel"
region = "{REGION}"
account = "{ACCOUNT}"
[shared.training]
instance_type = "ml.m5.large"
spot = false
[dev]
owns_repository = true
[shared.endpoint]
instance_type = "ml.m5.xlarge"
[prod]
[prod.endpoint]
min_instances = 2
"""


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    """The address of a moto server that all tests of the session share."""
    port = free_port()
    # A process of its own: moto warns of what it does not know, and warnings are errors in this one.
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _answers(url), timeout_s=60, what="moto's server")
        yield url
        server.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/moto-api/", trust_env=False).is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def aws_env(moto_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment that points boto3 and the aws command at an empty moto."""
    env = {
        "AWS_ENDPOINT_URL": moto_endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # It would hand this test's settings to those that follow.
    httpx.post(f"{moto_endpoint}/moto-api/reset", trust_env=False).raise_for_status()
    return env


@dataclass
class Sent:
    """Every request of a test, in order, and what is wrong with them by AWS's own models."""

    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def of(self, operation: str) -> list[dict[str, Any]]:
        return [request for name, request in self.requests if name == operation]

    def one(self, operation: str) -> dict[str, Any]:
        (request,) = self.of(operation)
        return request

    @property
    def writes(self) -> list[str]:
        """The operations that change something, by their names."""
        reading = ("Get", "List", "Describe", "Head", "BatchGet")
        return [name for name, _ in self.requests if not name.startswith(reading)]

    def record(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        self.requests.append((model.name, params))
        # S3's client takes a bucket's name into the host's name, and streams have no length: the rest is walked.
        shown = {key: value for key, value in params.items() if key not in ("Body",)}
        if model.input_shape is not None:
            found = (one for one in violations(model.input_shape, shown) if not one.startswith(".Body"))
            self.wrong += [f"{model.name}{one}" for one in found]


@pytest.fixture
def sent(aws_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    """Listen to every session of the test; at its end every request must have fitted AWS's models."""
    record = Sent()
    real = boto3.Session

    def listening(**arguments: Any) -> boto3.Session:
        session = real(**arguments)
        session.events.register("before-parameter-build", record.record)
        return session

    monkeypatch.setattr(boto3, "Session", listening)
    yield record
    assert record.wrong == []


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    file = tmp_path / "profiles.toml"
    file.write_text(PROFILES)
    return file


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def aws(sent: Sent, profiles: Path) -> Aws:
    """The dev stage of an account without anything in it."""
    clock = Clock()
    return Aws(Profile.load("dev", profiles), sleep=clock.sleep, clock=clock)


Reply = Callable[[str, dict[str, Any]], None]


@pytest.fixture
def reply(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> Reply:
    """Let AWS answer an operation (`s3.PutObject`) with this, in sessions that are made then; a `refusal` is a no."""

    def replying(operation: str, content: dict[str, Any]) -> None:
        listening = boto3.Session
        answer: Any = (AWSResponse("", 400 if "Error" in content else 200, HTTPHeaders(), None), content)

        def session(**arguments: Any) -> boto3.Session:
            made = listening(**arguments)
            hear: Any = made.events.register
            hear(f"before-call.{operation}", lambda **_: answer)
            return made

        monkeypatch.setattr(boto3, "Session", session)

    return replying


def refusal(code: str, said: str) -> dict[str, Any]:
    """An answer of AWS that is a no."""
    return {"Error": {"Code": code, "Message": said}}


@dataclass
class Answer:
    code: int
    output: str
    error: str


Run = Callable[..., Answer]


@pytest.fixture
def run(sent: Sent, profiles: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A command of `python -m deploy` in this process, so that its requests are heard."""
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: object, stage: str = "dev", profiles: Path = profiles) -> Answer:
        before = ["--stage", stage, "--profiles", str(profiles)]
        done = CliRunner().invoke(app, [*before, *(str(one) for one in arguments)], catch_exceptions=True)
        if done.exception is not None and not isinstance(done.exception, SystemExit | DeployError):
            raise done.exception
        error = str(done.exception) if isinstance(done.exception, DeployError) else done.stderr
        return Answer(done.exit_code, done.stdout, error)

    return command


@pytest.fixture
def base(run: Run, sent: Sent) -> None:
    """The base stack, applied. What moto's CloudFormation leaves out of a bucket is put there by hand."""
    answer = run("base", "apply", "--yes")
    assert answer.code == 0, answer.error
    every = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3: Any = boto3.client("s3")
    s3.put_public_access_block(Bucket=BUCKET, PublicAccessBlockConfiguration=dict.fromkeys(every, True))
    sent.requests.clear()


def delete_policies() -> None:
    """What CloudFormation does and moto's does not: policies leave their roles and go, before the roles do."""
    iam: Any = boto3.client("iam")
    for role in iam.list_roles()["Roles"]:
        for policy in iam.list_attached_role_policies(RoleName=role["RoleName"])["AttachedPolicies"]:
            iam.detach_role_policy(RoleName=role["RoleName"], PolicyArn=policy["PolicyArn"])
    for policy in iam.list_policies(Scope="Local")["Policies"]:
        iam.delete_policy(PolicyArn=policy["Arn"])
