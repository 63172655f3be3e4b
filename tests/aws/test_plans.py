"""--plan of every command changes nothing, and says what would be done."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import boto3
import pytest

from deploy.cli import app
from tests.aws.conftest import ACCOUNT, BUCKET, REGION, Run, Sent

URI = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/kennel@sha256:{'0' * 64}"
MODEL = f"s3://{BUCKET}/jobs/dogs-1/output/model.tar.gz"
COMMANDS = {
    "doctor": (),
    "advise": (),
    "audit": (),
    "base apply": (),
    "data push": ("{photos}",),
    "train": ("--data", "dogs", "--image", URI),
    "tune": ("--data", "dogs", "--image", URI, "--description", "{description}"),
    "ec2 train": ("--data", "dogs", "--image", URI),
    "status": ("dogs-ec2",),
    "logs": ("dogs-ec2",),
    "stop": ("dogs-ec2",),
    "endpoint apply": ("--model", MODEL, "--image", URI),
    "endpoint status": (),
    "endpoint rollback": (),
    "endpoint destroy": (),
    "endpoint notify": ("photos", "--remove"),
    "invoke": ("{photos}/a.jpg",),
    "loadtest": ("{photos}/a.jpg",),
    "destroy": ("--all",),
}
# The one command that is a plan itself.
PLANS = {"endpoint plan"}
DESCRIPTION = (
    '{"metric_definitions": [], "objective": {"MetricName": "m", "Type": "Maximize"}, '
    '"parameter_ranges": {"IntegerParameterRanges": [{"Name": "epochs", "MinValue": "1", "MaxValue": "9"}], '
    '"ContinuousParameterRanges": [], "CategoricalParameterRanges": []}}'
)


@pytest.fixture
def world(run: Run, base: None, sent: Sent, tmp_path: Path) -> dict[str, str]:
    """Something of everything that a command could change."""
    s3: Any = boto3.client("s3")
    for key in ("data/dogs/train/a/1.jpg", "jobs/dogs-1/output/model.tar.gz"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"x")
    description = tmp_path / "description.json"
    description.write_text(DESCRIPTION)
    assert run("ec2", "train", "--data", "dogs", "--image", URI, "--name", "dogs-ec2").code == 0
    for digit in "12":
        image = URI.replace("sha256:0", f"sha256:{digit}")
        assert run("endpoint", "apply", "--model", MODEL, "--image", image, "--yes").code == 0
    sent.requests.clear()
    return {"{photos}": str(photos), "{photos}/a.jpg": str(photos / "a.jpg"), "{description}": str(description)}


def test_every_plan_changes_nothing(run: Run, world: dict[str, str], sent: Sent) -> None:
    for command, arguments in COMMANDS.items():
        answer = run(*command.split(), *(world.get(one, one) for one in arguments), "--plan")
        assert answer.code == 0, (command, answer.error)
        assert "--plan: nothing was changed" in answer.output, command
        (cost,) = re.findall(r"^cost    (.+)$", answer.output, re.MULTILINE)
        assert "$" in cost or cost.startswith(("nothing", "what ")), (command, cost)
        # A change set is CloudFormation's plan; it is taken away again.
        assert set(sent.writes) <= {"CreateChangeSet", "DeleteChangeSet"}, command


def test_every_command_has_a_plan() -> None:
    names = {_name(one.name, one.callback) for one in app.registered_commands}
    for group in app.registered_groups:
        assert group.typer_instance is not None
        names |= {f"{group.name} {_name(one.name, one.callback)}" for one in group.typer_instance.registered_commands}
    assert names == set(COMMANDS) | PLANS


def _name(name: str | None, callback: Any) -> str:
    return name or str(callback.__name__)
