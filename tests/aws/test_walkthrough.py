"""The notebook of the walk-through, cell by cell in a real kernel, on stand-ins for AWS.

AWS's wire is moto's. What SageMaker does behind it is done here, by real containers: the job that moto accepted is run
by the image on the photos that lie in moto's S3, and its artifact is served to the calls of the endpoint.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import nbformat
import pytest
from nbclient import NotebookClient

from tests.aws.conftest import ACCOUNT, BUCKET, PROFILES, delete_policies
from tests.aws.tools import on_path
from tests.containers import IMAGE, ROOT, Engine, Server
from tests.documents import NOTEBOOK
from tests.lambda_runtime import RuntimeStandIn, forward
from tests.support import encoded, free_port, picture

BREEDS = ("001.Affenpinscher", "098.Leonberger", "133.Yorkshire_terrier")
SMALL = {"architecture": "resnet18", "pretrained": "false", "image_size": "32", "epochs": "1", "batch_size": "8"}


def write_dogs(folder: Path) -> Path:
    """Pictures laid out as the data set is, its one truncated file included; returns a test photo."""
    for split, count in (("train", 8), ("valid", 4), ("test", 4)):
        for place, breed in enumerate(BREEDS):
            for number in range(count):
                path = folder / split / breed / f"{breed[4:]}_{number:05}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(picture(90, 70, 100 * place + number), "JPEG"))
    whole = encoded(picture(500, 375, 7), "JPEG", quality=90)
    (folder / "train" / BREEDS[1] / "Leonberger_06571.jpg").write_bytes(whole[: len(whole) // 2])
    return folder / "test" / BREEDS[0] / "Affenpinscher_00003.jpg"


class SageMaker:
    """What the service does behind its wire, for one job and one endpoint."""

    def __init__(self, engine: Engine, scratch: Path) -> None:
        self.engine, self.scratch = engine, scratch
        self.s3: Any = boto3.client("s3")
        self.sagemaker: Any = boto3.client("sagemaker")

    def run_job(self, name: str) -> None:
        """Fetch the channels, train, put the artifact where the job says, and keep the log."""
        job = self.sagemaker.describe_training_job(TrainingJobName=name)
        base = self.scratch / "job"
        for channel in job["InputDataConfig"]:
            self._fetch(channel["DataSource"]["S3DataSource"]["S3Uri"], base / "input/data" / channel["ChannelName"])
        (base / "input/config").mkdir(parents=True)
        (base / "input/config/hyperparameters.json").write_text(json.dumps(job["HyperParameters"]))
        (base / "model").mkdir()
        volumes = [word for part in ("input", "model") for word in ("-v", f"{base / part}:/opt/ml/{part}")]
        done = self.engine.run("train", options=("--network", "none", *volumes))
        assert done.returncode == 0, done.stdout + done.stderr
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as tar:
            tar.add(base / "model", arcname=".")
        key = f"{job['OutputDataConfig']['S3OutputPath'].partition(f'{BUCKET}/')[2]}/{name}/output/model.tar.gz"
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=archive.getvalue())
        self._log(f"{name}/algo-1-1", done.stdout.splitlines())

    @contextlib.contextmanager
    def endpoint(self, key: str) -> Iterator[str]:
        """An endpoint that serves the artifact `key`: of moto's for those who ask, and a container that answers.

        moto's CloudFormation gives its endpoint another name than the template does.
        """
        role = f"arn:aws:iam::{ACCOUNT}:role/kennel-dev-endpoint"
        container = {"Image": "kennel", "ModelDataUrl": f"s3://{BUCKET}/{key}"}
        self.sagemaker.create_model(ModelName="m", ExecutionRoleArn=role, PrimaryContainer=container)
        variant = {"VariantName": "all", "ModelName": "m", "InstanceType": "ml.m5.xlarge", "InitialInstanceCount": 1}
        self.sagemaker.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant])
        self.sagemaker.create_endpoint(EndpointName="kennel-dev", EndpointConfigName="c")
        body = self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        model = self.scratch / "endpoint-model"
        model.mkdir()
        # Python's own filter for what an archive may do is younger than Debian 12's Python.
        subprocess.run(["tar", "-xz", "--no-same-owner", "-C", model], input=body, check=True)
        port, mount = free_port(), f"{model}:/opt/ml/model:ro"
        with self.engine.started("serve", options=("-p", f"127.0.0.1:{port}:8080", "-v", mount)) as started:
            Server(started, f"http://127.0.0.1:{port}").wait_until_ready()
            yield f"127.0.0.1:{port}"

    def remove_endpoint(self) -> None:
        self.sagemaker.delete_endpoint(EndpointName="kennel-dev")
        self.sagemaker.delete_endpoint_config(EndpointConfigName="c")
        self.sagemaker.delete_model(ModelName="m")

    def _fetch(self, uri: str, folder: Path) -> None:
        prefix = uri.partition(f"{BUCKET}/")[2]
        for page in self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
            for entry in page["Contents"]:
                path = folder / entry["Key"].removeprefix(prefix)
                path.parent.mkdir(parents=True, exist_ok=True)
                self.s3.download_file(BUCKET, entry["Key"], str(path))

    def _log(self, stream: str, lines: list[str]) -> None:
        logs: Any = boto3.client("logs")
        group = {"logGroupName": "/aws/sagemaker/TrainingJobs"}
        logs.create_log_group(**group)
        logs.create_log_stream(**group, logStreamName=stream)
        now = round(time.time() * 1000)
        events = [{"timestamp": now + index, "message": line} for index, line in enumerate(lines) if line]
        logs.put_log_events(**group, logStreamName=stream, logEvents=events)


def make_bucket_private() -> None:
    """What moto's CloudFormation leaves out of a bucket."""
    every = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3: Any = boto3.client("s3")
    s3.put_public_access_block(Bucket=BUCKET, PublicAccessBlockConfiguration=dict.fromkeys(every, True))


def push_image(tag: str) -> None:
    """What the cell with build_and_push.sh does to ECR; test_build_and_push.py has the script itself."""
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = json.dumps({"schemaVersion": 2, "mediaType": kind, "config": {}, "layers": []})
    ecr: Any = boto3.client("ecr")
    ecr.put_image(repositoryName="kennel", imageManifest=manifest, imageManifestMediaType=kind, imageTag=tag)


def clear_way_for_moto() -> None:
    """moto ends the stack's repository, which the template retains, and cannot while an image lies in it."""
    ecr: Any = boto3.client("ecr")
    ecr.batch_delete_image(repositoryName="kennel", imageIds=[{"imageTag": "dev"}])
    delete_policies()


@pytest.fixture
def runtime(aws_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[RuntimeStandIn]:
    with RuntimeStandIn() as stand_in:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", stand_in.address)
        yield stand_in


@pytest.fixture
def notebook(tmp_path: Path, runtime: RuntimeStandIn, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The notebook with settings for small things, and an environment in which its commands are found."""
    on_path("docker", "docker")
    photo = write_dogs(tmp_path / "dogImages")
    profiles = tmp_path / "profiles.toml"
    profiles.write_text(PROFILES)
    here = " ".join(f"--{name} {value}" for name, value in SMALL.items())
    there = " ".join(f"--set {name}={value}" for name, value in SMALL.items())
    values = {
        "PHOTO": str(photo.relative_to(tmp_path)),
        "IMAGE": IMAGE,
        "HERE": f"{here} --report false",
        "THERE": f"{there} --set report=false",
        "NAME": f"kennel-test-{uuid.uuid4().hex[:12]}",
        "PORT": free_port(),
        "DEPLOY": f"{sys.executable} -m deploy --profiles {profiles}",
        "LOAD": "--latency-ms 5000 --peak 4 --seconds 1",
    }
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    found = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    settings = next(cell for cell in found.cells if "settings" in cell.metadata.get("tags", []))
    known = {line.partition(" = ")[0] for line in settings.source.splitlines()}
    assert set(values) <= known
    settings.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    return found


class Walk:
    """The notebook in its kernel, and what happens in the world beside its cells."""

    def __init__(self, notebook: Any, folder: Path, service: SageMaker, runtime: RuntimeStandIn) -> None:
        self.cells = {cell.metadata["tags"][0]: cell for cell in notebook.cells if cell.cell_type == "code"}
        self.client = NotebookClient(notebook, timeout=400, resources={"metadata": {"path": str(folder)}})
        self.service, self.runtime, self.ended = service, runtime, contextlib.ExitStack()

    def run(self) -> None:
        with self.client.setup_kernel(), self.ended:
            for tag, cell in self.cells.items():
                getattr(self, f"before_{tag}", lambda: None)()
                if tag != "push":  # push_image stands for it; test_build_and_push.py has the script itself.
                    self.client.execute_cell(cell, self.client.nb.cells.index(cell))
                getattr(self, f"after_{tag}", lambda: None)()

    def printed(self, tag: str) -> str:
        return "".join(output.get("text", "") for output in self.cells[tag].outputs)

    def after_base(self) -> None:
        make_bucket_private()

    def after_push(self) -> None:
        push_image("dev")

    def after_train(self) -> None:
        self.service.run_job("dogs-1")

    def after_deploy(self) -> None:
        address = self.ended.enter_context(self.service.endpoint("jobs/dogs-1/output/model.tar.gz"))
        self.runtime.behave = forward(address)

    def before_destroy(self) -> None:
        self.service.remove_endpoint()
        clear_way_for_moto()


@pytest.mark.image
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_leads_from_photos_to_an_endpoint_and_back(
    notebook: Any, runtime: RuntimeStandIn, engine: Engine, tmp_path: Path
) -> None:
    service = SageMaker(engine, tmp_path)
    walk = Walk(notebook, tmp_path, service, runtime)
    walk.run()
    breeds = {breed[4:] for breed in BREEDS}
    assert "Leonberger_06571.jpg is left out" in walk.printed("doctor")
    assert "saved /opt/ml/model" in walk.printed("train-here")
    assert json.loads(walk.printed("ask-here").partition("\n")[2])["label"] in breeds  # behind the container's id
    assert "best validation:best_accuracy" in walk.printed("status")
    assert "dogs-tune" in walk.printed("tune")
    assert json.loads(walk.printed("invoke").splitlines()[-1])["label"] in breeds
    assert "endpoint.scaling_target" in walk.printed("scale")
    assert {call.endpoint for call in runtime.calls} == {"kennel-dev"}
    assert "nothing of kennel-dev is left" in walk.printed("destroy")


def test_the_notebook_is_committed_without_results() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:  # type: ignore[no-untyped-call]
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
