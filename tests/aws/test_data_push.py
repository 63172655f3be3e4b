"""`data push`: what is sent, what is not sent again, and what an interrupted push leaves to do."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest

from deploy import datasets
from deploy.aws import Aws
from deploy.errors import DeployError
from tests.aws.conftest import BUCKET, Reply, Run, Sent, refusal
from tests.aws.tools import ROOT
from tests.containers import Engine
from tests.support import encoded, picture, wait_until


@pytest.fixture
def dogs(tmp_path: Path) -> Path:
    folder = tmp_path / "dogs"
    for split, count in (("train", 4), ("valid", 2)):
        for label in ("001.Affenpinscher", "133.Yorkshire terrier"):
            place = folder / split / label
            place.mkdir(parents=True)
            for index in range(count):
                (place / f"{index}.jpg").write_bytes(encoded(picture(seed=index), "JPEG"))
    (folder / ".DS_Store").write_text("not a photo")
    return folder


def _held() -> dict[str, bytes]:
    s3: Any = boto3.client("s3")
    listed = s3.list_objects_v2(Bucket=BUCKET, Prefix="data/").get("Contents", [])
    return {one["Key"]: s3.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read() for one in listed}


def _count() -> int:
    return int(boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="data/")["KeyCount"])


def test_every_photo_arrives_with_its_digest(run: Run, base: None, dogs: Path, sent: Sent) -> None:
    answer = run("data", "push", "--no-doctor", dogs)
    assert answer.code == 0, answer.error
    here = {f"data/dogs/{path.relative_to(dogs)}": path.read_bytes() for path in dogs.rglob("*.jpg")}
    assert _held() == here
    for request in sent.of("PutObject"):
        if request["Key"] in here:
            assert request["ChecksumAlgorithm"] == "SHA256"
            assert request["Metadata"]["sha256"] == hashlib.sha256(here[request["Key"]]).hexdigest()
    manifest: Any = boto3.client("s3").get_object(Bucket=BUCKET, Key="manifests/data_dogs.json")
    assert set(json.loads(manifest["Body"].read())) == set(here)


def test_a_second_push_sends_nothing(run: Run, base: None, dogs: Path, sent: Sent) -> None:
    run("data", "push", "--no-doctor", dogs)
    sent.requests.clear()
    answer = run("data", "push", "--no-doctor", dogs)
    assert answer.code == 0, answer.error
    assert "12 files that are there already" in answer.output
    assert [one["Key"] for one in sent.of("PutObject")] == ["manifests/data_dogs.json"]


def test_a_file_of_the_same_size_and_other_content_is_sent(run: Run, base: None, dogs: Path, sent: Sent) -> None:
    run("data", "push", "--no-doctor", dogs)
    photo = dogs / "train/001.Affenpinscher/0.jpg"
    photo.write_bytes(bytes([*photo.read_bytes()[:-1], 7]))
    sent.requests.clear()
    run("data", "push", "--no-doctor", dogs)
    keys = {one["Key"] for one in sent.of("PutObject")}
    assert keys == {"data/dogs/train/001.Affenpinscher/0.jpg", "manifests/data_dogs.json"}


def test_a_push_that_was_killed_goes_on_where_it_was(
    run: Run, base: None, dogs: Path, sent: Sent, profiles: Path
) -> None:
    for index in range(600):
        (dogs / "train/001.Affenpinscher" / f"more-{index}.jpg").write_bytes(b"photo %d" % index)
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "deploy",
        "--profiles",
        profiles,
        "data",
        "push",
        "--no-doctor",
        dogs,
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        wait_until(_count, timeout_s=60, what="the first photo in S3")
        process.kill()
    arrived = _count()
    assert 0 < arrived < 612
    answer = run("data", "push", "--no-doctor", dogs)
    assert answer.code == 0, answer.error
    # A request that was under way when the process died may have arrived after the count.
    assert 612 - arrived - 16 <= len(sent.of("PutObject")) - 1 <= 612 - arrived
    assert _count() == 612


def test_a_file_that_was_lost_on_the_way_is_noticed(aws: Aws, base: None, dogs: Path) -> None:
    files = datasets.list_local(dogs, prefix="data/dogs/")
    datasets.push(aws, files[1:], progress=lambda _: None)
    with pytest.raises(DeployError, match=r"1 files are not in .*001\.Affenpinscher/0\.jpg"):
        datasets.verify(aws, files, prefix="data/dogs/")


@pytest.mark.parametrize(
    ("operation", "code", "remedy"),
    [
        ("PutObject", "AccessDenied", "`doctor`"),
        ("PutObject", "ExpiredToken", "aws sso login"),
        ("UploadPart", "SlowDown", "repeat in a minute"),  # a photo of 16 MB or more goes in parts
    ],
)
def test_an_upload_that_s3_refuses_is_a_sentence(
    run: Run, base: None, dogs: Path, reply: Reply, operation: str, code: str, remedy: str
) -> None:
    (dogs / "train/001.Affenpinscher/large.bmp").write_bytes(bytes(16 * 2**20))
    reply(f"s3.{operation}", refusal(code, "not now"))
    answer = run("data", "push", "--no-doctor", dogs)
    assert answer.code == 1
    assert re.match(rf"uploading {dogs}/\S.* to s3://{BUCKET}/data/dogs/.*\nAWS said {code}: not now\n", answer.error)
    assert remedy in answer.error


def test_a_bucket_that_may_be_public_is_refused(run: Run, base: None, dogs: Path, sent: Sent) -> None:
    boto3.client("s3").delete_public_access_block(Bucket=BUCKET)
    answer = run("data", "push", "--no-doctor", dogs)
    assert answer.code == 1
    assert "does not block public access" in answer.error
    assert sent.of("PutObject") == []


def test_without_a_bucket_the_remedy_is_named(run: Run, dogs: Path) -> None:
    answer = run("data", "push", "--no-doctor", dogs)
    assert "NoSuchBucket" in answer.error
    assert "`base apply`" in answer.error


def test_strays_are_told_of(run: Run, base: None, dogs: Path) -> None:
    boto3.client("s3").put_object(Bucket=BUCKET, Key="data/dogs/train/old/1.jpg", Body=b"x")
    assert "1 files lie there that are not here" in run("data", "push", "--no-doctor", dogs, "--plan").output


def test_a_plan_sends_nothing(run: Run, base: None, dogs: Path, sent: Sent) -> None:
    answer = run("data", "push", "--no-doctor", dogs, "--plan")
    assert answer.code == 0, answer.error
    assert "12 files" in answer.output
    assert sent.writes == []


@pytest.mark.parametrize(("argument", "words"), [("nowhere", "is no folder"), ("empty", "holds no files")])
def test_a_folder_without_photos_is_a_sentence(run: Run, base: None, tmp_path: Path, argument: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    assert words in run("data", "push", "--no-doctor", tmp_path / argument).error


# ---- the doctor looks first ----------------------------------------------------------------------------------------


@pytest.mark.image
def test_the_doctor_of_the_image_looks_first(engine: Engine, run: Run, base: None, dogs: Path, sent: Sent) -> None:
    planned = run("data", "push", dogs, "--plan")
    assert "the doctor over the photos, here, in image" in planned.output
    answer = run("data", "push", dogs)
    assert answer.code == 0, answer.error
    assert answer.output.index("data doctor:") < answer.output.index("12 files are in s3://")
    sent.requests.clear()
    assert "data doctor:" not in run("data", "push", dogs).output  # nothing new to look at


@pytest.mark.image
def test_photos_that_training_would_refuse_are_not_sent(engine: Engine, run: Run, base: None, dogs: Path) -> None:
    shutil.rmtree(dogs / "train/001.Affenpinscher")
    shutil.rmtree(dogs / "valid")
    answer = run("data", "push", dogs)
    assert answer.code == 1
    assert "the doctor does not let" in answer.error
    assert "1 class" in answer.error
    assert "--no-doctor" in answer.error
    assert _held() == {}
    assert run("data", "push", dogs, "--no-doctor").code == 0
