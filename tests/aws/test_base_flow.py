"""The base stack through change sets, against moto's CloudFormation."""

from __future__ import annotations

import boto3

from tests.aws.cloudformation import load
from tests.aws.conftest import BUCKET, Run, Sent


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
