"""The SageMaker SDK's local mode, a client that nobody here wrote, on real containers.

Version 2 as its users call it: Estimator, deploy, Predictor, transformer, with files instead of S3. Version 3's
LocalSession takes the jobs' and the endpoint's own dicts, with moto's S3; they are sent as they are, but for the image,
which is the local one instead of ECR's.
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from deploy import datasets
from deploy.aws import Aws
from deploy.profile import Training
from deploy.stacks import read_template
from deploy.training import Job, training_request
from tests.aws import cloudformation
from tests.aws.conftest import ACCOUNT, BUCKET, REGION
from tests.aws.tools import on_path, tool
from tests.containers import IMAGE, Engine
from tests.support import free_port
from tests.training import SMALL, write_digits

pytestmark = [pytest.mark.image, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def digits(aws: Aws, tmp_path: Path) -> Path:
    """Handwritten digits, pushed as `data push` does it."""
    s3: Any = boto3.client("s3")
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    folder = tmp_path / "digits"
    write_digits(folder / "train", per_class=16)
    write_digits(folder / "valid", per_class=8, skip=16)
    files = datasets.list_local(folder, prefix="data/digits/")
    datasets.push(aws, files, progress=lambda _: None)
    return folder


@pytest.fixture
def rooms(engine: Engine, tmp_path: Path) -> Iterator[Path]:
    """A folder for the SDK's containers, which are taken away at the end with their networks."""
    folder = tmp_path / "rooms"
    folder.mkdir()
    yield folder
    where, project = "com.docker.compose.project.working_dir", "com.docker.compose.project"
    labels = f'{{{{.ID}}}} {{{{.Label "{project}"}}}} {{{{.Label "{where}"}}}}'
    listed = engine("ps", "--all", "--filter", f"label={where}", "--format", labels).stdout.splitlines()
    mine = [line.split()[:2] for line in listed if str(folder) in line]
    for container, _ in mine:
        engine("rm", "--force", container)
    for room in {name for _, name in mine}:
        networks = engine("network", "ls", "--quiet", "--filter", f"label={project}={room}").stdout.split()
        if networks:
            engine("network", "rm", *networks)


def _play(
    order: dict[str, Any],
    rooms: Path,
    aws_env: dict[str, str],
    *,
    environment: str = ".venv-sdk3",
    program: str = "local_session.py",
) -> dict[str, Any]:
    python = tool(environment, "python")
    on_path("docker-compose", "docker-compose")
    nowhere = {
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    done = subprocess.run(
        [python, Path(__file__).with_name(program)],
        input=json.dumps({"folder": str(rooms), "port": free_port(), **order}),
        env={**os.environ, **aws_env, **nowhere, "PATH": f"/usr/bin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _request(aws: Aws, *, instances: int) -> dict[str, Any]:
    job = Job(
        name="digits-1",
        image=IMAGE,
        bucket=BUCKET,
        channels=datasets.in_bucket(aws, "digits").channels,
        settings=Training(instance_type="ml.m5.large", instances=instances, spot=False),
        hyperparameters=SMALL,
    )
    return training_request(job, role_arn=aws.role_arn("training"), profile=aws.profile)


def _files(uri: str) -> set[str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    s3: Any = boto3.client("s3")
    body = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        return {Path(name).name for name in archive.getnames()}


def test_a_job_and_its_endpoint_run_from_our_own_dicts(
    aws: Aws, digits: Path, rooms: Path, aws_env: dict[str, str]
) -> None:
    trained = _play({"training": _request(aws, instances=1)}, rooms, aws_env)["training"]
    assert trained["state"] == "Completed"
    # The job's layout is SageMaker's, and `endpoint apply --model JOB` reads it.
    artifact = trained["artifact"]
    assert artifact.startswith(f"s3://{BUCKET}/jobs/digits-1/")
    assert {"manifest.json", "model.onnx"} <= _files(artifact)
    values = {
        "Stage": "dev",
        "Bucket": BUCKET,
        "EndpointRoleArn": f"arn:aws:iam::{ACCOUNT}:role/kennel-dev-endpoint",
        "ImageUri": IMAGE,
        "ModelDataUrl": artifact,
        "WithLambda": "false",
    }
    found = cloudformation.resources(read_template("app"), values)
    (variant,) = found["EndpointConfig"]["ProductionVariants"]
    model = {
        "PrimaryContainer": {"Environment": {}, **found["Model"]["PrimaryContainer"]},
        "ProductionVariants": [{**variant, "ModelName": "m"}],
    }
    photo = next((digits / "valid").rglob("*.png")).read_bytes()
    order = {"model": model, "photo": base64.b64encode(photo).decode()}
    answer = _play(order, rooms, aws_env)["endpoint"]
    assert answer["status"] == 200
    assert {one["label"] for one in answer["body"]["predictions"]} <= {"0", "1", "2"}


def test_two_hosts_train_from_our_own_dict(aws: Aws, digits: Path, rooms: Path, aws_env: dict[str, str]) -> None:
    trained = _play({"training": _request(aws, instances=2)}, rooms, aws_env)["training"]
    assert trained["state"] == "Completed"
    assert {"manifest.json", "model.onnx"} <= _files(trained["artifact"])


@pytest.mark.parametrize("instances", [1, 2])
def test_an_estimator_trains_and_what_it_trained_is_deployed_and_transforms(
    engine: Engine, rooms: Path, tmp_path: Path, aws_env: dict[str, str], instances: int
) -> None:
    write_digits(tmp_path / "training", per_class=16)
    photos = write_digits(tmp_path / "digits", per_class=2, skip=16, classes=1) / "0"
    order: dict[str, Any] = {
        "image": IMAGE,
        "training": str(tmp_path / "training"),
        "hyperparameters": SMALL,
        "instances": instances,
    }
    if instances == 1:  # What is served does not depend on it.
        order["photos"] = str(photos)
    answer = _play(order, rooms, aws_env, environment=".venv-sdk", program="sdk_estimator.py")
    with tarfile.open(answer["artifact"].removeprefix("file://")) as archive:
        assert {"manifest.json", "model.onnx"} <= {Path(name).name for name in archive.getnames()}
    if instances == 1:
        assert sorted(answer["transformed"]) == ["016.png.out", "017.png.out"]
        for body in (answer["prediction"], *answer["transformed"].values()):
            assert {one["label"] for one in body["predictions"]} == {"0", "1", "2"}
