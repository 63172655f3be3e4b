"""`endpoint apply | plan | status | rollback | destroy` through change sets, against moto's CloudFormation.

moto's CloudFormation ignores the endpoint's name and knows neither functions, scaling nor alarms: those are asserted in
the template (test_templates.py). Here it is what was sent, and that a second time sends nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from deploy import inventory, releases
from deploy.aws import Aws
from tests.aws.conftest import ACCOUNT, BUCKET, PROFILES, REGION, Run, Sent, delete_policies

URI = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/kennel@sha256:"
ONE, TWO = URI + "1" * 64, URI + "2" * 64
MODEL = f"s3://{BUCKET}/jobs/dogs-1/output/model.tar.gz"


@pytest.fixture
def ready(base: None, sent: Sent) -> None:
    boto3.client("s3").put_object(Bucket=BUCKET, Key="jobs/dogs-1/output/model.tar.gz", Body=b"x")
    sent.requests.clear()


@pytest.fixture
def in_service(ready: None) -> None:
    """The app stack, and an endpoint of its name."""
    stack: Any = [{"ParameterKey": "Stage", "ParameterValue": "dev"}]
    template = json.dumps(
        {"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}, "Parameters": {"Stage": {"Type": "String"}}}
    )
    boto3.client("cloudformation").create_stack(StackName="kennel-dev-app", TemplateBody=template, Parameters=stack)
    sagemaker: Any = boto3.client("sagemaker")
    role = f"arn:aws:iam::{ACCOUNT}:role/kennel-dev-endpoint"
    sagemaker.create_model(ModelName="m", ExecutionRoleArn=role, PrimaryContainer={"Image": ONE, "ModelDataUrl": MODEL})
    variant = {"VariantName": "all", "ModelName": "m", "InstanceType": "ml.m5.xlarge", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="kennel-dev", EndpointConfigName="c")


def _parameters(request: dict[str, Any]) -> dict[str, str]:
    return {one["ParameterKey"]: one["ParameterValue"] for one in request["Parameters"]}


def test_apply_names_image_model_and_code_by_what_cannot_change(run: Run, ready: None, sent: Sent) -> None:
    answer = run("endpoint", "apply", "--model", MODEL, "--image", ONE, "--yes")
    assert answer.code == 0, answer.error
    values = _parameters(sent.one("CreateChangeSet"))
    assert values["ImageUri"] == ONE
    assert values["ModelDataUrl"] == MODEL
    code = next(one for one in sent.of("PutObject") if one["Key"].startswith("functions/"))
    assert values["CodeKey"] == code["Key"]
    assert (values["MinInstances"], values["MaxInstances"], values["ProvisionedConcurrency"]) == ("1", "3", "2")
    assert (values["ScaleOutCooldown"], values["ScaleInCooldown"]) == ("300", "300")
    assert values["EndpointRoleArn"] == f"arn:aws:iam::{ACCOUNT}:role/kennel-dev-endpoint"
    assert "CAPABILITY_AUTO_EXPAND" in sent.one("CreateChangeSet")["Capabilities"]


def test_the_plan_tells_cost_and_the_shorter_cool_down(run: Run, ready: None, sent: Sent) -> None:
    answer = run("endpoint", "plan", "--model", MODEL, "--image", ONE)
    assert answer.code == 0, answer.error
    assert "a month while it stands (1 x ml.m5.xlarge $" in answer.output
    assert "60 is enough, for a new instance" in answer.output
    assert "check them before you rely on them" in answer.output
    assert sent.writes == ["CreateChangeSet", "DeleteChangeSet", "DeleteStack"]


def test_a_second_apply_changes_nothing(run: Run, ready: None, sent: Sent, aws: Aws) -> None:
    run("endpoint", "apply", "--model", MODEL, "--image", ONE, "--yes")
    sent.requests.clear()
    # CloudFormation answers a change set without changes with FAILED; moto makes an empty one.
    answer = run("endpoint", "apply", "--model", MODEL, "--image", ONE, "--yes")
    assert answer.code == 0, answer.error
    assert "kennel-dev-app is as it should be" in answer.output
    assert [name for name in sent.writes if name not in ("CreateChangeSet", "DeleteChangeSet")] == []
    assert len(releases.keys(aws, "kennel-dev-app")) == 1


def test_rollback_goes_to_the_release_before(run: Run, ready: None, sent: Sent) -> None:
    for image in (ONE, TWO):
        assert run("endpoint", "apply", "--model", MODEL, "--image", image, "--yes").code == 0
    sent.requests.clear()
    answer = run("endpoint", "rollback", "--yes")
    assert answer.code == 0, answer.error
    assert _parameters(sent.one("CreateChangeSet"))["ImageUri"] == ONE
    assert sent.one("CreateChangeSet")["ChangeSetType"] == "UPDATE"


def test_a_second_rollback_goes_further_back(run: Run, ready: None, sent: Sent) -> None:
    images = [ONE, TWO, URI + "3" * 64, URI + "4" * 64]  # moto takes the way back to the very first for no change
    for image in images:
        assert run("endpoint", "apply", "--model", MODEL, "--image", image, "--yes").code == 0
    sent.requests.clear()
    for _ in range(2):
        assert run("endpoint", "rollback", "--yes").code == 0
    assert [_parameters(one)["ImageUri"] for one in sent.of("CreateChangeSet")] == images[2:0:-1]


def test_without_an_earlier_release_there_is_no_way_back(run: Run, ready: None) -> None:
    assert run("endpoint", "apply", "--model", MODEL, "--image", ONE, "--yes").code == 0
    assert "no earlier release" in run("endpoint", "rollback", "--yes").error


@pytest.mark.parametrize("variant", ["serverless", "async", "multi-model"])
def test_every_variant_can_be_applied(run: Run, ready: None, sent: Sent, tmp_path: Path, variant: str) -> None:
    answer = run(
        "endpoint", "apply", "--model", MODEL, "--image", ONE, "--yes", profiles=_of_variant(tmp_path, variant)
    )
    assert answer.code == 0, answer.error
    assert _parameters(sent.one("CreateChangeSet"))["Variant"] == variant


def test_an_endpoint_of_one_variant_is_not_made_into_another(run: Run, ready: None, sent: Sent, tmp_path: Path) -> None:
    apply = ("endpoint", "apply", "--model", MODEL, "--image", ONE, "--yes")
    assert run(*apply).code == 0
    sent.requests.clear()
    answer = run(*apply, profiles=_of_variant(tmp_path, "serverless"))
    assert "is real-time, and AWS cannot make it serverless: `endpoint destroy` first" in answer.error
    assert "CreateChangeSet" not in sent.writes


def test_the_account_is_asked_for_room_before_anything_is_made(run: Run, ready: None, sent: Sent) -> None:
    answer = run("endpoint", "apply", "--model", MODEL, "--image", ONE, "--yes")
    assert answer.code == 0, answer.error
    asked = [name for name, _ in sent.requests]
    for question in ("ListServiceQuotas", "GetAccountSettings"):
        assert asked.index(question) < asked.index("PutObject") < asked.index("CreateChangeSet")
    # moto knows neither; what is answered is judged in test_doctor.py, for the doctor asks the same.
    assert "the account's concurrency could not be read" in answer.output


def test_a_finished_job_names_its_model(run: Run, ready: None, sent: Sent) -> None:
    s3: Any = boto3.client("s3")
    s3.put_object(Bucket=BUCKET, Key="data/dogs/train/a/1.jpg", Body=b"x")
    assert run("train", "--data", "dogs", "--image", ONE, "--name", "dogs-7").code == 0
    s3.put_object(Bucket=BUCKET, Key="jobs/dogs-7/output/model.tar.gz", Body=b"x")
    answer = run("endpoint", "apply", "--model", "dogs-7", "--image", ONE, "--yes")
    assert answer.code == 0, answer.error
    assert _parameters(sent.one("CreateChangeSet"))["ModelDataUrl"].endswith("/dogs-7/output/model.tar.gz")


def test_a_model_that_is_not_there_is_refused_first(run: Run, ready: None, sent: Sent) -> None:
    answer = run("endpoint", "apply", "--model", f"s3://{BUCKET}/jobs/none/model.tar.gz", "--image", ONE, "--yes")
    assert answer.code == 1
    assert "nothing lies at" in answer.error
    assert sent.writes == []


def test_pillow_that_cannot_be_had_is_a_sentence(
    run: Run, ready: None, sent: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    file = tmp_path / "pillow.toml"
    file.write_text(PROFILES + "[shared.function]\npillow = true\n")
    answer = run("endpoint", "apply", "--model", MODEL, "--image", ONE, "--yes", profiles=file)
    assert "pip could not get Pillow" in answer.error
    assert sent.writes == []


def test_status_without_an_endpoint_says_how_to_get_one(run: Run, ready: None) -> None:
    assert "`endpoint apply`" in run("endpoint", "status").error


def test_status_says_what_is_in_service(run: Run, in_service: None) -> None:
    assert "endpoint kennel-dev: InService" in run("endpoint", "status").output


_ANSWER = json.dumps({"label": "Affenpinscher"})


def _will_answer(aws_env: dict[str, str], queue: str, *results: dict[str, Any]) -> None:
    """Tell moto what its endpoint is to answer next."""
    body = json.dumps({"results": results, "region": REGION})
    url = f"{aws_env['AWS_ENDPOINT_URL']}/moto-api/static/sagemaker/{queue}"
    httpx.post(url, content=body, trust_env=False).raise_for_status()


def test_invoke_sends_the_photo_to_the_one_endpoint(
    run: Run, in_service: None, sent: Sent, tmp_path: Path, aws_env: dict[str, str]
) -> None:
    photo = tmp_path / "dog.jpg"
    photo.write_bytes(b"a photo")
    assert run("invoke", photo, "--plan").code == 0
    assert sent.of("InvokeEndpoint") == []
    _will_answer(aws_env, "endpoint-results", {"Body": _ANSWER, "ContentType": "application/json"})
    answer = run("invoke", photo)
    assert answer.code == 0, answer.error
    assert json.loads(answer.output) == {"photo": str(photo), "label": "Affenpinscher"}
    request = sent.one("InvokeEndpoint")
    assert (request["EndpointName"], request["Body"]) == ("kennel-dev", b"a photo")


def _of_variant(folder: Path, variant: str) -> Path:
    """A profile whose endpoint is of this kind."""
    file = folder / f"{variant}.toml"
    text = PROFILES.replace("[shared.endpoint]", f'[shared.endpoint]\nvariant = "{variant}"')
    file.write_text(text if variant == "serverless" else text + "[shared.function]\nenabled = false\n")
    return file


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "dog.jpg"
    file.write_bytes(b"a photo")
    return file


def test_an_asynchronous_endpoint_is_asked_by_way_of_the_bucket(
    run: Run, in_service: None, sent: Sent, photo: Path, tmp_path: Path, aws_env: dict[str, str]
) -> None:
    _will_answer(aws_env, "async-endpoint-results", {"data": _ANSWER}, {"is_failure": True, "data": "no photo"})
    file = _of_variant(tmp_path, "async")
    answer = run("invoke", photo, profiles=file)
    assert json.loads(answer.output) == {"photo": str(photo), "label": "Affenpinscher"}
    place = sent.one("InvokeEndpointAsync")["InputLocation"].removeprefix(f"s3://{BUCKET}/")
    s3: Any = boto3.client("s3")
    assert s3.get_object(Bucket=BUCKET, Key=place)["Body"].read() == b"a photo"
    photo.write_bytes(b"another")
    assert "the endpoint refused the photo: no photo" in run("invoke", photo, profiles=file).error
    assert "load-test its container with --url" in run("loadtest", photo, profiles=file).error


def test_one_of_many_models_must_be_named(
    run: Run, in_service: None, sent: Sent, photo: Path, tmp_path: Path, aws_env: dict[str, str]
) -> None:
    file = _of_variant(tmp_path, "multi-model")
    assert "say which with --model" in run("invoke", photo, profiles=file).error
    _will_answer(aws_env, "endpoint-results", {"Body": _ANSWER, "ContentType": "application/json"})
    answer = run("invoke", photo, "--model", "dogs.tar.gz", profiles=file)
    assert json.loads(answer.output)["label"] == "Affenpinscher"
    assert sent.one("InvokeEndpoint")["TargetModel"] == "dogs.tar.gz"


def test_an_answer_that_is_none_of_ours_is_a_sentence(run: Run, in_service: None, photo: Path) -> None:
    """Without being told, moto answers with `body`."""
    assert "the endpoint's answer is not JSON: b'body'" in run("invoke", photo).error


# ---- a bucket that tells the function of new photos ----------------------------------------------------------------


@pytest.fixture
def notify(run: Run, profiles: Path) -> Run:
    """`endpoint …` with a profile that lets the function read the bucket `photos`."""
    file = profiles.with_name("reads-photos.toml")
    file.write_text(PROFILES + '[shared.function]\nallowed_buckets = ["photos"]\n')
    return functools.partial(run, "endpoint", profiles=file)


@pytest.fixture
def photos(in_service: None, sent: Sent) -> str:
    """A bucket that the profile lets the function read, with a notification of somebody else's."""
    s3: Any = boto3.client("s3")
    s3.create_bucket(Bucket="photos", CreateBucketConfiguration={"LocationConstraint": REGION})
    others = {"TopicConfigurations": [{"Id": "theirs", "TopicArn": _TOPIC, "Events": ["s3:ObjectRemoved:*"]}]}
    s3.put_bucket_notification_configuration(Bucket="photos", NotificationConfiguration=others)
    sent.requests.clear()
    return "photos"


_TOPIC = f"arn:aws:sns:{REGION}:{ACCOUNT}:theirs"


def _notifications(bucket: str) -> tuple[list[dict[str, Any]], list[str]]:
    s3: Any = boto3.client("s3")
    found = s3.get_bucket_notification_configuration(Bucket=bucket)
    topics = [one["Id"] for one in found.get("TopicConfigurations", [])]
    return found.get("LambdaFunctionConfigurations", []), topics


@pytest.fixture
def spelt_by_s3(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 begins a filter rule's name with a capital (https://github.com/aws/aws-sdk/issues/389); moto does not."""
    listening = boto3.Session

    def spell(parsed: dict[str, Any], **_: Any) -> None:
        for one in parsed.get("LambdaFunctionConfigurations", []):
            for rule in one["Filter"]["Key"]["FilterRules"]:
                rule["Name"] = rule["Name"].capitalize()

    def session(**arguments: Any) -> boto3.Session:
        made = listening(**arguments)
        made.events.register("after-call.s3.GetBucketNotificationConfiguration", spell)
        return made

    monkeypatch.setattr(boto3, "Session", session)


def test_a_bucket_notifies_the_alias_and_keeps_its_other_notifications(
    spelt_by_s3: None, notify: Run, photos: str, sent: Sent
) -> None:
    assert "what the function and the endpoint cost" in notify("notify", photos, "--plan").output
    for _ in range(2):
        answer = notify("notify", photos, "--prefix", "incoming/")
        assert answer.code == 0, answer.error
    sent.one("PutBucketNotificationConfiguration")  # the second time, there is nothing to do
    (ours,), others = _notifications(photos)
    assert ours["LambdaFunctionArn"] == f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:kennel-dev-classify:live"
    assert ours["Filter"]["Key"]["FilterRules"] == [{"Name": "Prefix", "Value": "incoming/"}]
    assert others == ["theirs"]
    assert notify("notify", photos, "--remove").code == 0
    assert _notifications(photos) == ([], ["theirs"])


def test_a_bucket_does_not_notify_a_function_that_is_gone(notify: Run, photos: str, aws: Aws) -> None:
    notify("notify", photos)
    function = dataclasses.replace(aws.profile.function, allowed_buckets=(photos,))
    aws.profile = dataclasses.replace(aws.profile, function=function)
    assert inventory.Left("notification of bucket", "photos") in inventory.take(aws)
    assert notify("destroy", "--yes").code == 0
    assert _notifications(photos) == ([], ["theirs"])


def test_a_bucket_that_the_function_may_not_read_does_not_notify_it(notify: Run, photos: str) -> None:
    assert "add it to function.allowed_buckets" in notify("notify", "others").error
    notify("destroy", "--yes")
    assert "there is no function to notify" in notify("notify", photos).error


def test_destroying_the_endpoint_leaves_data_and_base(run: Run, ready: None, sent: Sent) -> None:
    run("endpoint", "apply", "--model", MODEL, "--image", ONE, "--yes")
    assert run("endpoint", "destroy", "--yes").code == 0
    names = [one["StackName"] for one in boto3.client("cloudformation").describe_stacks()["Stacks"]]
    assert names == ["kennel-dev-base"]
    assert run("endpoint", "destroy", "--yes").code == 0


def test_destroy_all_leaves_nothing_and_proves_it(run: Run, ready: None, sent: Sent) -> None:
    run("endpoint", "apply", "--model", MODEL, "--image", ONE, "--yes")
    s3: Any = boto3.client("s3")
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    for _ in range(2):
        s3.put_object(Bucket=BUCKET, Key="data/dogs/train/a/1.jpg", Body=b"x")
    s3.delete_object(Bucket=BUCKET, Key="data/dogs/train/a/1.jpg")
    boto3.client("logs").create_log_group(logGroupName="/aws/sagemaker/Endpoints/kennel-dev")
    boto3.client("logs").create_log_group(logGroupName="/aws/sagemaker/Endpoints/another")
    delete_policies()
    planned = run("destroy", "--all", "--plan")
    assert "bucket kennel-dev-" in planned.output
    assert "repository kennel" in planned.output
    answer = run("destroy", "--all", "--yes")
    assert answer.code == 0, answer.error
    assert "nothing of kennel-dev is left" in answer.output
    assert s3.list_buckets()["Buckets"] == []
    assert boto3.client("cloudformation").describe_stacks()["Stacks"] == []
    assert boto3.client("ecr").describe_repositories()["repositories"] == []
    groups = [one["logGroupName"] for one in boto3.client("logs").describe_log_groups()["logGroups"]]
    assert groups == ["/aws/sagemaker/Endpoints/another"]
    assert run("destroy", "--all", "--yes").code == 0


def test_destroying_everything_must_be_said(run: Run, ready: None, sent: Sent) -> None:
    assert "`destroy --all` removes everything" in run("destroy").error
    assert sent.writes == []
