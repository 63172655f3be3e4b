"""The script that an EC2 instance runs, run for real: in a container of the image's base, on the real engine.

Stand-ins: `dnf` installs `aws`, as on the minimal Amazon Linux that the machine image stands on; `aws` copies between
folders and writes down log events; `docker login` and `docker pull` answer at once (the image is there), every other
docker command is the engine's; `shutdown` is written down; the log driver is json-file, for awslogs needs an instance's
credentials.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy import ec2
from deploy.profile import Training
from deploy.training import Job
from tests.containers import IMAGE, Engine
from tests.training import SMALL, write_digits

BASE_IMAGE = "debian:bookworm-slim"
_AWS = r"""#!/bin/bash
place() { printf '%s' "${1/#s3:\/\//$BUCKETS/}"; }
printf '%s\n' "$*" >>"$BUCKETS/../aws.log"
case "$1 $2" in
  's3 sync')
    from=$(place "$4") to=$(place "$5")
    if [[ ${6:-} == --delete ]]; then
      [[ ! -e $BUCKETS/../denied ]] || exit 1
      rm -rf "$to"
    fi
    mkdir -p "$to"
    [[ ! -d $from ]] || cp -r "$from/." "$to/" ;;
  's3 cp') mkdir -p "$(dirname "$(place "$5")")" && cp "$4" "$(place "$5")" ;;
  'ecr get-login-password') echo password ;;
  'logs '*) ;;
  *) echo "unknown: $*" >&2; exit 1 ;;
esac
"""
_DOCKER = """#!/bin/bash
case $1 in
  login) cat >/dev/null; exit ;;
  pull) exit ;;
esac
exec /engine/docker "$@"
"""
# What a minimal Amazon Linux does not have, and gets.
_DNF = """#!/bin/bash
printf '%s\\n' "$*" >>"$BUCKETS/../dnf.log"
mv "$BUCKETS/../awscli-2" "$BUCKETS/../bin/aws"
"""
_SHUTDOWN = """#!/bin/bash
printf '%s\\n' "$*" >>"$BUCKETS/../shutdown.log"
"""


@dataclass(frozen=True)
class Instance:
    """What the script left behind."""

    folder: Path
    output: str

    @property
    def results(self) -> Path:
        return self.folder / "buckets/kennel-dev/jobs/dogs-1/output"

    @property
    def notes(self) -> list[str]:
        log = (self.folder / "aws.log").read_text()
        events = re.findall(r"--log-events (\[.*\])$", log, re.MULTILINE)
        return [json.loads(one)[0]["message"] for one in events]

    @property
    def shutdowns(self) -> list[str]:
        return (self.folder / "shutdown.log").read_text().splitlines()


def _place_programs(
    folder: Path, *, docker: str = _DOCKER, hyperparameters: dict[str, str] | None = None, hours: float = 1
) -> Path:
    """The script of a job, as `user-data`, and the stand-ins beside it."""
    job = Job(
        name="dogs-1",
        image=IMAGE,
        bucket="kennel-dev",
        channels={"training": "s3://kennel-dev/data/digits/train/"},
        settings=Training(instance_type="ml.m5.large", max_hours=hours),
        hyperparameters=hyperparameters or {},
    )
    script = ec2.user_data(
        job, region="eu-west-3", log_group="/kennel/dev/ec2", work=str(folder / "disk"), log_driver="json-file"
    )
    programs = folder / "bin"
    programs.mkdir()
    for name, text in {"dnf": _DNF, "docker": docker, "shutdown": _SHUTDOWN, "user-data": script}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (folder / "awscli-2").write_text(_AWS)
    (folder / "awscli-2").chmod(0o755)
    return programs


def _launch(engine: Engine, folder: Path, *, hyperparameters: dict[str, str], hours: float = 1) -> Instance:
    programs = _place_programs(folder, hyperparameters=hyperparameters, hours=hours)
    mounts = ("--volume", f"{folder}:{folder}", "--volume", "/var/run/docker.sock:/var/run/docker.sock")
    client = ("--volume", f"{_engine_path(engine)}:/engine/docker:ro")
    env = ("--env", f"BUCKETS={folder / 'buckets'}", "--env", f"PATH={programs}:/usr/bin:/bin")
    done = engine(
        "run", "--rm", *mounts, *client, *env, BASE_IMAGE, str(programs / "user-data"), check=False, timeout_s=400
    )
    return Instance(folder, done.stdout + done.stderr)


def _engine_path(engine: Engine) -> str:
    if Path(engine.command).name != "docker":
        pytest.skip("the instance's engine is docker")
    found = subprocess.run(["bash", "-c", f"command -v {engine.command}"], capture_output=True, text=True, check=True)
    return str(Path(found.stdout.strip()).resolve())


@pytest.fixture
def folder(tmp_path: Path, engine: Engine) -> Path:
    if engine("image", "inspect", BASE_IMAGE, check=False).returncode:
        pytest.skip(f"needs the image {BASE_IMAGE}")
    write_digits(tmp_path / "buckets/kennel-dev/data/digits/train", per_class=12)
    return tmp_path


@pytest.mark.image
def test_the_artifact_lies_in_the_bucket_and_the_instance_ends(engine: Engine, folder: Path) -> None:
    instance = _launch(engine, folder, hyperparameters=SMALL)
    assert instance.notes[-1].startswith("COMPLETED: s3://kennel-dev/jobs/dogs-1/output/model.tar.gz"), instance.output
    with tarfile.open(instance.results / "model.tar.gz") as archive:
        names = {Path(name).name for name in archive.getnames()}
    assert {"manifest.json", "model.onnx", "weights.safetensors"} <= names
    assert instance.shutdowns == ["-h +90", "-h now"]
    assert (folder / "dnf.log").read_text() == "install -y awscli-2\n"
    assert "validation:accuracy=" in instance.output
    assert not (instance.results / "failure").exists()


@pytest.mark.image
def test_a_job_that_fails_says_why_in_the_bucket_and_the_instance_ends(engine: Engine, folder: Path) -> None:
    instance = _launch(engine, folder, hyperparameters={"epochz": "1"})
    assert "'epochz' is unknown" in (instance.results / "failure").read_text(), instance.output
    assert instance.notes[-1].startswith("FAILED: ")
    assert instance.shutdowns[-1] == "-h now"
    assert not (instance.results / "model.tar.gz").exists()


@pytest.mark.image
@pytest.mark.slow
def test_a_job_that_runs_out_of_time_keeps_its_model(engine: Engine, folder: Path) -> None:
    instance = _launch(engine, folder, hyperparameters={**SMALL, "epochs": "10000"}, hours=1 / 60)
    assert instance.notes[-1].startswith("COMPLETED"), instance.output
    assert (instance.results / "model.tar.gz").exists()
    assert instance.shutdowns == ["-h +31", "-h now"]


# An engine whose container rotates: the oldest checkpoint goes, a new one comes.
_ROTATING = """#!/bin/bash
case $1 in
  login) cat >/dev/null ;;
  pull) {pull} ;;
  run) cd "$BUCKETS/../disk/ml/checkpoints" && rm epoch-1 && touch epoch-4 ;;
esac
"""


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """What an earlier job has left in the bucket."""
    folder = tmp_path / "buckets/kennel-dev/checkpoints/dogs-1"
    folder.mkdir(parents=True)
    for number in (1, 2, 3):
        (folder / f"epoch-{number}").touch()
    return folder


def _run_here(folder: Path, *, pull: str = "exit") -> Instance:
    programs = _place_programs(folder, docker=_ROTATING.replace("{pull}", pull))
    (folder / "awscli-2").rename(programs / "aws")  # before any real one
    env = {"BUCKETS": str(folder / "buckets"), "PATH": f"{programs}:/usr/bin:/bin"}
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            [programs / "user-data"], env=env, stdout=output, stderr=output, start_new_session=True
        )
        process.wait(60)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the instance's end is that of the loop that saves every minute
    return Instance(folder, (folder / "output").read_text())


@pytest.mark.parametrize(
    ("pull", "left"),
    [("exit", ["epoch-2", "epoch-3", "epoch-4"]), ("exit 1", ["epoch-1", "epoch-2", "epoch-3"])],
    ids=["trained", "failed before they were fetched"],
)
def test_checkpoints_are_mirrored_once_they_were_fetched(
    tmp_path: Path, checkpoints: Path, pull: str, left: list[str]
) -> None:
    instance = _run_here(tmp_path, pull=pull)
    assert sorted(path.name for path in checkpoints.iterdir()) == left, instance.output


def test_an_instance_that_may_not_save_its_checkpoints_ends_all_the_same(tmp_path: Path, checkpoints: Path) -> None:
    (tmp_path / "denied").touch()
    assert _run_here(tmp_path).shutdowns == ["-h +90", "-h now"]


def test_every_value_is_quoted_for_the_shell(tmp_path: Path) -> None:
    """A hyperparameter is data, whatever it holds."""
    job = Job(
        name="dogs-1",
        image=IMAGE,
        bucket="b",
        channels={"training": "s3://b/it's a $(touch /tmp/gone)/"},
        settings=Training(),
        hyperparameters={"a": "'; touch gone; '", "b": "$(touch gone)"},
    )
    head = ec2.user_data(job, region="r", log_group="/g").split("# What an EC2 instance does")[0]
    show = 'printf "%s\\n" "$HYPERPARAMETERS" "${CHANNELS[training]}"'
    done = subprocess.run(["bash", "-c", f"{head}\n{show}"], capture_output=True, text=True, check=True, cwd=tmp_path)
    hyperparameters, channel = done.stdout.splitlines()
    assert json.loads(hyperparameters) == job.hyperparameters
    assert channel == job.channels["training"]
    assert list(tmp_path.iterdir()) == []


def test_a_script_that_ec2_would_refuse_is_refused_here() -> None:
    from deploy.errors import DeployError

    job = Job(name="j", image="i", bucket="b", channels={}, settings=Training(), hyperparameters={"a": "x" * 15_000})
    with pytest.raises(DeployError, match=r"EC2 takes 16,384"):
        ec2.user_data(job, region="r", log_group="/g")
