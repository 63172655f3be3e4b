"""`train`, `tune`, `ec2 train`, `status`, `logs`, `stop`: what is sent, and what is shown of a real process's log."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from deploy import inventory, jobs
from deploy.aws import Aws
from deploy.training import DEFAULT_EPOCHS
from deploy.weights import DEFAULT_ARCHITECTURE
from tests.aws.conftest import ACCOUNT, BUCKET, PROFILES, REGION, Reply, Run, Sent
from tests.aws.tools import ROOT
from tests.training import write_digits
from train.config import TrainConfig

Pushed = Callable[[str], str]
URI = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/kennel@sha256:{'0' * 64}"


@pytest.fixture
def ready(base: None, sent: Sent) -> None:
    """A data set in the bucket, with three splits under the names that published data sets use."""
    s3: Any = boto3.client("s3")
    for split in ("train", "valid", "test"):
        s3.put_object(Bucket=BUCKET, Key=f"data/dogs/{split}/a/1.jpg", Body=b"x")
    sent.requests.clear()


@pytest.fixture
def description(tmp_path: Path) -> Path:
    """What the program that the image runs says of itself."""
    file = tmp_path / "description.json"
    done = subprocess.run([sys.executable, "-m", "train", "--describe"], cwd=ROOT, capture_output=True, check=True)
    file.write_bytes(done.stdout)
    return file


def test_train_sends_the_whole_job(run: Run, ready: None, sent: Sent) -> None:
    answer = run("train", "--data", "dogs", "--image", URI, "--name", "dogs-1", "--set", "epochs=3", "--instances", 2)
    assert answer.code == 0, answer.error
    assert answer.output.splitlines()[-1] == "dogs-1"
    request = sent.one("CreateTrainingJob")
    assert request["AlgorithmSpecification"]["TrainingImage"] == URI
    assert request["HyperParameters"] == {"epochs": "3"}
    channels = {one["ChannelName"]: one["DataSource"]["S3DataSource"]["S3Uri"] for one in request["InputDataConfig"]}
    assert channels == {
        "training": f"s3://{BUCKET}/data/dogs/train/",
        "validation": f"s3://{BUCKET}/data/dogs/valid/",
        "test": f"s3://{BUCKET}/data/dogs/test/",
    }
    assert request["ResourceConfig"]["InstanceCount"] == 2
    assert request["EnableInterContainerTrafficEncryption"] is True
    assert request["EnableNetworkIsolation"] is True
    assert request["RoleArn"] == f"arn:aws:iam::{ACCOUNT}:role/kennel-dev-training"
    assert request["OutputDataConfig"]["S3OutputPath"] == f"s3://{BUCKET}/jobs"


def test_spot_has_checkpoints_and_time_to_wait(run: Run, ready: None, sent: Sent) -> None:
    assert run("train", "--data", "dogs", "--image", URI, "--name", "d", "--spot", "--hours", 2).code == 0
    request = sent.one("CreateTrainingJob")
    assert request["EnableManagedSpotTraining"] is True
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 7200, "MaxWaitTimeInSeconds": 14400}
    assert request["CheckpointConfig"]["S3Uri"] == f"s3://{BUCKET}/checkpoints/d/"


def test_a_job_that_continues_another_shares_its_checkpoints(run: Run, ready: None, sent: Sent) -> None:
    assert run("train", "--data", "dogs", "--image", URI, "--continue", "dogs-1").code == 0
    assert sent.one("CreateTrainingJob")["CheckpointConfig"]["S3Uri"] == f"s3://{BUCKET}/checkpoints/dogs-1/"


@pytest.fixture
def pushed(ready: None) -> Pushed:
    """Puts an image into ECR under a tag; its digest URI."""

    def push(tag: str) -> str:
        ecr: Any = boto3.client("ecr")
        manifest = json.dumps({"mediaType": "application/vnd.docker.distribution.manifest.v2+json", "of": tag})
        held = ecr.put_image(repositoryName="kennel", imageManifest=manifest, imageTag=tag)["image"]
        return f"{URI.partition('@')[0]}@{held['imageId']['imageDigest']}"

    return push


@pytest.mark.parametrize("command", [("train",), ("ec2", "train")])
def test_a_job_without_a_network_needs_weights(run: Run, pushed: Pushed, sent: Sent, command: tuple[str, ...]) -> None:
    bare, baked = pushed("0123456789ab"), pushed("0123456789ab-dirty-0123456789ab-resnet18-cpu")
    sent.requests.clear()
    without = run(*command, "--data", "dogs", "--image", bare)
    assert "its image holds no weights; training starts from those of resnet50" in without.error
    assert "PRETRAINED=resnet50 ./build_and_push.sh TAG" in without.error
    other = run(*command, "--data", "dogs", "--image", baked)
    assert "its image holds resnet18 weights" in other.error
    assert sent.writes == []
    for enough in (
        ("--image", bare, "--set", "pretrained=false"),
        ("--image", bare, "--channel", f"pretrained=s3://{BUCKET}/weights/"),
        ("--image", baked, "--set", "architecture=resnet18"),
    ):
        answer = run(*command, "--data", "dogs", *enough, "--plan")
        assert (answer.code, "must be in the image" in answer.output) == (0, False), answer.error


def test_an_image_of_unknown_make_is_trusted_and_the_plan_says_what_it_needs(run: Run, pushed: Pushed) -> None:
    answer = run("train", "--data", "dogs", "--image", pushed("mine"), "--plan")
    assert answer.code == 0, answer.error
    assert "the weights of resnet50 must be in the image" in answer.output
    assert TrainConfig().architecture == DEFAULT_ARCHITECTURE


def test_a_warm_pool_is_asked_for(run: Run, ready: None, sent: Sent) -> None:
    assert run("train", "--data", "dogs", "--image", URI, "--warm-minutes", 20).code == 0
    assert sent.one("CreateTrainingJob")["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 1200
    refused = run("train", "--data", "dogs", "--image", URI, "--warm-minutes", 20, "--spot")
    assert "cannot be had with spot" in refused.error


def test_tuning_searches_what_the_image_ships(run: Run, ready: None, sent: Sent, description: Path) -> None:
    answer = run(
        *("tune", "--data", "dogs", "--image", URI, "--description", description, "--trials", 6, "--parallel", 3),
        *("--set", "weight_decay=0.01"),
    )
    assert answer.code == 0, answer.error
    request = sent.one("CreateHyperParameterTuningJob")
    shipped = json.loads(description.read_text())
    config = request["HyperParameterTuningJobConfig"]
    assert config["HyperParameterTuningJobObjective"] == shipped["objective"]
    assert (
        request["TrainingJobDefinition"]["AlgorithmSpecification"]["MetricDefinitions"] == shipped["metric_definitions"]
    )
    searched = {one["Name"] for ranges in config["ParameterRanges"].values() for one in ranges}
    of_image = {one["Name"] for ranges in shipped["parameter_ranges"].values() for one in ranges}
    assert searched == of_image - {"weight_decay"}
    assert request["TrainingJobDefinition"]["StaticHyperParameters"] == {"weight_decay": "0.01"}
    assert config["ResourceLimits"] == {"MaxNumberOfTrainingJobs": 6, "MaxParallelTrainingJobs": 3}


def test_ec2_train_launches_what_ends_itself(run: Run, ready: None, sent: Sent) -> None:
    answer = run(
        *("ec2", "train", "--data", "dogs", "--image", URI, "--name", "dogs-ec2", "--set", "epochs=3"),
        *("--instance-type", "ml.g4dn.xlarge"),
    )
    assert answer.code == 0, answer.error
    request = sent.one("RunInstances")
    assert request["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert request["MetadataOptions"]["HttpTokens"] == "required"
    assert request["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    assert "KeyName" not in request
    assert request["IamInstanceProfile"] == {"Name": "kennel-dev-ec2"}
    assert request["ImageId"].endswith("gpu/recommended/image_id")
    assert request["ClientToken"] == "dogs-ec2"
    script = base64.b64decode(request["UserData"]).decode()
    assert "--gpus=all" in script
    (group,) = request["NetworkInterfaces"][0]["Groups"]
    ec2: Any = boto3.client("ec2")
    assert ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"] == []
    assert "AuthorizeSecurityGroupIngress" not in sent.writes


def test_ec2_train_uses_its_group_again(run: Run, ready: None, sent: Sent) -> None:
    for name in ("one", "two"):
        assert run("ec2", "train", "--data", "dogs", "--image", URI, "--name", name).code == 0
    assert sent.writes.count("CreateSecurityGroup") == 1


def test_ec2_train_has_a_group_in_each_network(run: Run, ready: None, sent: Sent, profiles: Path, aws: Aws) -> None:
    ec2: Any = boto3.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.1.0.0/24")["Subnet"]["SubnetId"]
    in_subnet = profiles.with_name("in-subnet.toml")
    of_training = f'[shared.training]\nsubnets = ["{subnet}"]\nsecurity_groups = ["sg-1"]'
    in_subnet.write_text(PROFILES.replace("[shared.training]", of_training))
    for name, file in (("one", profiles), ("two", in_subnet)):
        answer = run("ec2", "train", "--data", "dogs", "--image", URI, "--name", name, profiles=file)
        assert answer.code == 0, answer.error
    groups = [one["NetworkInterfaces"][0]["Groups"][0] for one in sent.of("RunInstances")]
    assert ec2.describe_security_groups(GroupIds=[groups[1]])["SecurityGroups"][0]["VpcId"] == vpc
    assert sorted(one.name for one in inventory.take(aws) if one.kind == "security group") == sorted(groups)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "epochs"), "write NAME=VALUE"),
        (("--set", "a=1", "--set", "a=2"), "given twice"),
        (("--instance-type", "g4dn.xlarge"), "must start with ml."),
        (("--name", "x" * 64), "at most 63"),
        (("--name", "dogs_1"), "letters, digits and hyphens"),
        (("--name", "dogs-1-"), "begin and end with no hyphen"),
        (("--hours", "0"), "more than 0"),
        (("--data", "cats"), "`data push DIR --name cats` first"),
        (("--image", "v9"), "./build_and_push.sh v9"),
    ],
)
def test_a_job_that_aws_would_refuse_is_not_sent(
    run: Run, ready: None, sent: Sent, arguments: tuple[str, ...], words: str
) -> None:
    answer = run("train", "--data", "dogs", "--image", URI, *arguments)
    assert answer.code == 1
    assert words in answer.error
    assert sent.writes == []


def test_a_folder_of_photos_is_pushed_first(run: Run, ready: None, sent: Sent, tmp_path: Path) -> None:
    write_digits(tmp_path / "digits/train", per_class=2)
    write_digits(tmp_path / "digits/valid", per_class=1)
    planned = run("train", "--data", tmp_path / "digits", "--image", URI, "--plan")
    assert planned.code == 0, planned.error
    assert sent.writes == []
    answer = run("train", "--data", tmp_path / "digits", "--image", URI, "--name", "digits-1", "--follow")
    assert answer.code == 0, answer.error
    assert "9 files are in s3://" in answer.output
    assert "training digits-1: Completed" in answer.output
    channels = {one["ChannelName"]: one for one in sent.one("CreateTrainingJob")["InputDataConfig"]}
    assert set(channels) == {"training", "validation"}
    assert channels["training"]["DataSource"]["S3DataSource"]["S3Uri"] == f"s3://{BUCKET}/data/digits/train/"


def test_an_image_by_tag_is_named_by_its_digest(run: Run, ready: None, sent: Sent) -> None:
    ecr: Any = boto3.client("ecr")
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = {"schemaVersion": 2, "mediaType": kind, "config": {"digest": "sha256:" + "1" * 64}, "layers": []}
    pushed = ecr.put_image(repositoryName="kennel", imageManifest=json.dumps(manifest), imageTag="prod")
    assert run("train", "--data", "dogs", "--image", "prod").code == 0
    digest = pushed["image"]["imageId"]["imageDigest"]
    assert sent.one("CreateTrainingJob")["AlgorithmSpecification"]["TrainingImage"].endswith(f"/kennel@{digest}")


# ---- logs and status, of a process that really runs ----------------------------------------------------------------

_PROGRAM = """
import time
print("epoch 1 begins", flush=True)
for epoch, accuracy in enumerate((0.31, 0.92, 0.88)):
    print(f"validation:accuracy={accuracy:.6f}", flush=True)
    print(f"validation:best_accuracy={max(0.31, accuracy):.6f}", flush=True)
    print(f"validation:loss={1 - accuracy:.6f}", flush=True)
    time.sleep(0.3)
print("saved the model", flush=True)
"""


def _pump(process: subprocess.Popen[str], stream: str) -> None:
    """What SageMaker's agent does: every line of a container becomes an event of its stream."""
    logs: Any = boto3.client("logs")
    logs.create_log_stream(logGroupName=jobs.TRAINING_LOGS, logStreamName=stream)
    assert process.stdout is not None
    for line in process.stdout:
        event = {"timestamp": int(time.time() * 1000), "message": line.rstrip()}
        logs.put_log_events(logGroupName=jobs.TRAINING_LOGS, logStreamName=stream, logEvents=[event])


@pytest.fixture
def running(run: Run, ready: None) -> Iterator[subprocess.Popen[str]]:
    """A training job by name, and a real process whose lines are logged as its container's."""
    assert run("train", "--data", "dogs", "--image", URI, "--name", "dogs-1").code == 0
    boto3.client("logs").create_log_group(logGroupName=jobs.TRAINING_LOGS)
    with subprocess.Popen([sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        pump = threading.Thread(target=_pump, args=(process, "dogs-1/algo-1-1700000000"))
        pump.start()
        yield process
        pump.join()


def test_logs_follow_a_process_to_its_end(aws: Aws, running: subprocess.Popen[str]) -> None:
    aws.sleep = time.sleep
    source = jobs.LogSource(jobs.TRAINING_LOGS, "dogs-1/")
    seen = []
    for _, line in jobs.lines(aws, source, follow_until=lambda: running.poll() is not None and _pumped(aws, source)):
        seen.append(line)
    assert seen[0] == "epoch 1 begins"
    assert seen[-1] == "saved the model"
    assert len(seen) == 11


def _pumped(aws: Aws, source: jobs.LogSource) -> bool:
    return jobs.last_lines(aws, source, count=1) == ["saved the model"]


def test_status_shows_the_best_metric_so_far(run: Run, aws: Aws, running: subprocess.Popen[str]) -> None:
    source = jobs.LogSource(jobs.TRAINING_LOGS, "dogs-1/")
    while not (running.poll() is not None and _pumped(aws, source)):
        time.sleep(0.1)
    output = run("status", "dogs-1").output
    assert "training dogs-1: Completed" in output
    assert "best validation:accuracy 0.9200" in output
    assert "best validation:loss 0.0800" in output


def test_logs_of_a_job_without_a_log_are_empty(run: Run, ready: None) -> None:
    assert run("train", "--data", "dogs", "--image", URI, "--name", "dogs-2").code == 0
    answer = run("logs", "dogs-2")
    assert (answer.code, answer.output) == (0, "")


def test_an_unknown_job_is_a_sentence(run: Run, base: None) -> None:
    assert "no training job, tuning job or EC2 instance" in run("status", "nobody").error


def test_an_ec2_job_is_found_by_its_tag_and_stopped(run: Run, ready: None, sent: Sent) -> None:
    assert run("ec2", "train", "--data", "dogs", "--image", URI, "--name", "dogs-ec2").code == 0
    assert "ec2 dogs-ec2: running i-" in run("status", "dogs-ec2").output
    planned = run("stop", "dogs-ec2", "--plan")
    assert "its instances are billed no longer" in planned.output
    assert sent.of("TerminateInstances") == []
    assert run("stop", "dogs-ec2").code == 0
    assert len(sent.one("TerminateInstances")["InstanceIds"]) == 1


@pytest.fixture
def gone(run: Run, ready: None) -> Any:
    """An EC2 job whose instance has ended."""
    assert run("ec2", "train", "--data", "dogs", "--image", URI, "--name", "dogs-ec2").code == 0
    ec2: Any = boto3.client("ec2")
    (reservation,) = ec2.describe_instances()["Reservations"]
    ec2.terminate_instances(InstanceIds=[reservation["Instances"][0]["InstanceId"]])
    return boto3.client("s3")


def test_an_instance_that_left_a_model_has_completed(run: Run, gone: Any) -> None:
    gone.put_object(Bucket=BUCKET, Key="jobs/dogs-ec2/output/model.tar.gz", Body=b"x")
    answer = run("status", "dogs-ec2")
    assert answer.code == 0
    assert "ec2 dogs-ec2: Completed" in answer.output
    assert f"artifact: s3://{BUCKET}/jobs/dogs-ec2/output/model.tar.gz" in answer.output


def test_an_instance_that_left_a_failure_has_failed(run: Run, gone: Any) -> None:
    gone.put_object(Bucket=BUCKET, Key="jobs/dogs-ec2/output/failure", Body=b"channel 'training' holds 1 class folder")
    answer = run("status", "dogs-ec2")
    assert answer.code == 1
    assert "failure: channel 'training' holds 1 class folder" in answer.output


def test_an_instance_that_left_nothing_has_failed_too(run: Run, gone: Any) -> None:
    answer = run("status", "dogs-ec2")
    assert answer.code == 1
    assert "it left neither a model nor a failure" in answer.output


# ---- what is cheap to check is checked before photos are sent ------------------------------------------------------


def test_a_name_in_use_is_found_before_anything_is_sent(run: Run, ready: None, sent: Sent, digits: Path) -> None:
    assert run("train", "--data", "dogs", "--image", URI, "--name", "dogs-1").code == 0
    sent.requests.clear()
    for command in (("train",), ("tune",), ("ec2", "train")):
        answer = run(*command, "--data", digits, "--image", URI, "--name", "dogs-1")
        assert "the name 'dogs-1' is in use: training dogs-1 is Completed; choose another" in answer.error
    assert sent.writes == []


def test_a_quota_of_zero_is_found_before_anything_is_sent(
    run: Run, ready: None, sent: Sent, digits: Path, reply: Reply
) -> None:
    quota = {"QuotaName": "ml.m5.large for training job usage", "QuotaCode": "L-1234", "Value": 0.0}
    reply("service-quotas.ListServiceQuotas", {"Quotas": [quota]})
    answer = run("train", "--data", digits, "--image", URI)
    assert "quota 'ml.m5.large for training job usage' is 0 in eu-west-3; this needs 1" in answer.error
    assert "aws service-quotas request-service-quota-increase" in answer.error
    assert sent.writes == []


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    write_digits(tmp_path / "digits/train", per_class=2)
    return tmp_path / "digits"


def test_the_plan_tells_time_and_cost_of_these_photos(run: Run, ready: None) -> None:
    arguments = ("--data", "dogs", "--image", URI, "--set", "epochs=3", "--instance-type", "ml.g4dn.xlarge")
    for command in (("train",), ("ec2", "train")):
        output = run(*command, *arguments, "--plan").output
        assert "for 3 epochs of 1 photos, all layers; at most $" in output


def test_the_image_trains_as_often_as_the_estimates_say() -> None:
    assert TrainConfig().epochs == DEFAULT_EPOCHS


def test_a_further_channel_is_sent(run: Run, ready: None, sent: Sent) -> None:
    weights = f"s3://{BUCKET}/weights/"
    assert run("train", "--data", "dogs", "--image", URI, "--channel", f"pretrained={weights}").code == 0
    channels = {one["ChannelName"]: one["DataSource"] for one in sent.one("CreateTrainingJob")["InputDataConfig"]}
    assert channels["pretrained"]["S3DataSource"]["S3Uri"] == weights
    assert "write NAME=s3://" in run("train", "--data", "dogs", "--image", URI, "--channel", "pretrained").error


def test_warm_instances_are_told_of_and_let_go(aws: Aws) -> None:
    stubber = Stubber(aws.client("sagemaker"))
    described = {**_TRAINING_JOB, "WarmPoolStatus": {"Status": "Available"}}
    stubber.add_response("describe_training_job", described, {"TrainingJobName": "dogs-1"})
    keep = {"KeepAlivePeriodInSeconds": 0}
    stubber.add_response(
        "update_training_job",
        {"TrainingJobArn": _TRAINING_JOB["TrainingJobArn"]},
        {"TrainingJobName": "dogs-1", "ResourceConfig": keep},
    )
    with stubber:
        found = jobs.status(aws, "dogs-1")
        assert (found.ended, found.warm) == (True, True)
        jobs.stop(aws, found)
    stubber.assert_no_pending_responses()


_TRAINING_JOB: dict[str, Any] = {
    "TrainingJobName": "dogs-1",
    "TrainingJobArn": f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/dogs-1",
    "TrainingJobStatus": "Completed",
    "SecondaryStatus": "Completed",
    "ModelArtifacts": {"S3ModelArtifacts": ""},
    "AlgorithmSpecification": {"TrainingInputMode": "File"},
    "ResourceConfig": {},
    "StoppingCondition": {},
    "CreationTime": 0,
}
