"""The base stack through change sets, against moto's CloudFormation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
import pytest

from deploy import images
from deploy.aws import Aws
from deploy.errors import DeployError
from deploy.profile import Profile
from tests.aws.cloudformation import load, resources
from tests.aws.conftest import ACCOUNT, BUCKET, PROFILES, REGION, Run, Sent


def test_applying_makes_bucket_repository_and_roles(run: Run, base: None) -> None:
    assert [one["Name"] for one in boto3.client("s3").list_buckets()["Buckets"]] == [BUCKET]
    assert boto3.client("ecr").describe_repositories(repositoryNames=["kennel"])["repositories"]
    roles = {role["RoleName"] for role in boto3.client("iam").list_roles()["Roles"]}
    assert {"kennel-dev-training", "kennel-dev-endpoint", "kennel-dev-ec2"} <= roles


def test_the_change_set_adopts_what_exists_and_names_its_capabilities(run: Run, sent: Sent) -> None:
    assert run("base", "apply", "--yes").code == 0
    request = sent.one("CreateChangeSet")
    assert request["ChangeSetType"] == "CREATE"
    assert request["ImportExistingResources"] is True
    assert "CAPABILITY_NAMED_IAM" in request["Capabilities"]
    assert {"ParameterKey": "OwnsRepository", "ParameterValue": "true"} in request["Parameters"]
    # AWS adopts no resource whose name is a function (Ref, Sub), and the names must be those of before.
    adopted = load(request["TemplateBody"])["Resources"]
    assert adopted["Bucket"]["Properties"]["BucketName"] == BUCKET
    assert adopted["Repository"]["Properties"]["RepositoryName"] == "kennel"
    assert {one["DeletionPolicy"] for one in (adopted["Bucket"], adopted["Repository"])} == {"RetainExceptOnCreate"}


def test_a_plan_leaves_nothing_behind(run: Run, sent: Sent) -> None:
    answer = run("base", "apply", "--plan")
    assert answer.code == 0, answer.error
    assert "Bucket: AWS::S3::Bucket" in answer.output
    assert sent.writes == ["CreateChangeSet", "DeleteChangeSet", "DeleteStack"]
    assert boto3.client("s3").list_buckets()["Buckets"] == []


def test_another_account_pulls_by_digest_what_was_tested(run: Run, sent: Sent, tmp_path: Path) -> None:
    file = tmp_path / "accounts.toml"
    text = PROFILES.replace("owns_repository = true", 'owns_repository = true\npull_accounts = ["210987654321"]')
    file.write_text(text.replace("[prod]", '[prod]\nrepository_account = "210987654321"'))
    for stage in ("dev", "prod"):
        assert run("base", "apply", "--yes", stage=stage, profiles=file).code == 0
    owner, user = (_resources(request) for request in sent.of("CreateChangeSet"))
    (statement,) = owner["Repository"]["RepositoryPolicyText"]["Statement"]
    assert statement["Principal"] == {"AWS": "210987654321"}
    assert "Repository" not in user
    pulls = [one["PolicyDocument"]["Statement"][1]["Resource"] for one in (owner["PullImage"], user["PullImage"])]
    assert pulls == [f"arn:aws:ecr:{REGION}:{account}:repository/kennel" for account in (ACCOUNT, "210987654321")]
    with pytest.raises(DeployError, match="is of account 210987654321, where tags may move: name the image by its dig"):
        images.image_uri(Aws(Profile.load("prod", file)), "v1")


def test_training_attaches_to_the_named_network_alone(run: Run, sent: Sent, tmp_path: Path) -> None:
    file = tmp_path / "network.toml"
    network = 'subnets = ["subnet-1"]\nsecurity_groups = ["sg-1"]\n'
    file.write_text(PROFILES.replace("[shared.training]\n", f"[shared.training]\n{network}"))
    assert run("base", "apply", "--yes", profiles=file).code == 0
    statements = _resources(sent.one("CreateChangeSet"))["TrainingInVpc"]["PolicyDocument"]["Statement"]
    named = {one["Sid"]: one["Resource"] for one in statements}
    made_of = [one.removeprefix(f"arn:aws:ec2:{REGION}:{ACCOUNT}:") for one in named["AttachInterfaces"].split(",")]
    assert made_of == ["network-interface/*", "subnet/subnet-1", "security-group/sg-1"]


def test_alone_nobody_else_pulls_and_no_network_is_entered(run: Run, base: None, sent: Sent) -> None:
    assert run("base", "apply", "--yes").code == 0
    made = _resources(sent.one("CreateChangeSet"))
    assert "RepositoryPolicyText" not in made["Repository"]
    assert "TrainingInVpc" not in made


def _resources(request: dict[str, Any]) -> dict[str, Any]:
    """What a change set's template makes with its parameters."""
    parameters = {one["ParameterKey"]: one["ParameterValue"] for one in request["Parameters"]}
    return resources(request["TemplateBody"], parameters)
