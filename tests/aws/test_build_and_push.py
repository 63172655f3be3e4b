"""build_and_push.sh as it ships, against a real TLS registry under ECR's host name and moto's ECR."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from tests.aws.conftest import ACCOUNT, REGION
from tests.aws.ecr_registry import CERTIFICATES, HOST, PASSWORD, ecr_registry, missing

SCRIPT = Path(__file__).parents[2] / "build_and_push.sh"
ENGINES = ("docker", "podman")
_NOTHING = "localhost/kennel-test-nothing:latest"


def _engine(name: str) -> str | None:
    """The path of an engine that works here. A docker client without BuildKit is passed over."""
    for path in ("/usr/bin", *os.environ["PATH"].split(":")):
        program = Path(path) / name
        if program.exists() and subprocess.run([program, "info"], capture_output=True).returncode == 0:
            return str(program)
    return None


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if reason := missing():
        pytest.skip(reason)
    with ecr_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host
    for program in filter(None, map(_engine, ENGINES)):
        listed = subprocess.run([program, "images", "--quiet", f"{host}/kennel"], capture_output=True, text=True)
        subprocess.run([program, "rmi", "--force", _NOTHING], capture_output=True)
        if images := set(listed.stdout.split()):
            subprocess.run([program, "rmi", "--force", *images], capture_output=True, check=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A git repository with the script and an image of a few bytes."""
    folder = tmp_path / "project"
    (folder / "container").mkdir(parents=True)
    shutil.copy(SCRIPT, folder)
    for script in ("build.sh", "engine.sh"):
        shutil.copy(SCRIPT.parent / "container" / script, folder / "container")
    (folder / "container/requirements-torch-cuda.txt").touch()
    (folder / "container/Dockerfile").write_text(
        "FROM scratch\nARG REVISION\nLABEL org.opencontainers.image.revision=$REVISION\nCOPY photo /photo\n"
    )
    (folder / "photo").write_bytes(os.urandom(64))
    _git(folder, "init", "--quiet")
    _commit(folder)
    return folder


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _commit(folder: Path) -> None:
    _git(folder, "add", "--all")
    _git(folder, "commit", "--quiet", "--message", "x")


def _version(project: Path) -> str:
    """What the script calls the image of HEAD that `_push` builds, whose base is not the usual one."""
    base = hashlib.sha256(_NOTHING.encode()).hexdigest()[:8]
    return f"{_git(project, 'rev-parse', '--short=12', 'HEAD')}-base-{base}"


def _push(
    project: Path, env: dict[str, str], *arguments: str, engine: str = "docker", **more: str
) -> subprocess.CompletedProcess[str]:
    program = _engine(engine)
    if program is None:
        pytest.skip(f"no {engine} that answers `{engine} info` on this machine")
    return _run_script(project, env, program, *arguments, **{"BASE": _some_image(program), **more})


def _run_script(
    project: Path, env: dict[str, str], program: str | Path, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    if not shutil.which("aws"):
        pytest.skip("needs the aws command (awscli)")
    scratch = project.parent / "tmp"
    scratch.mkdir(exist_ok=True)
    return subprocess.run(
        [project / "build_and_push.sh", *arguments],
        cwd="/",
        env={**os.environ, **env, "CONTAINER_ENGINE": str(program), "TMPDIR": str(scratch), **more},
        capture_output=True,
        text=True,
        timeout=180,
    )


def _some_image(program: str) -> str:
    """An image that the engine has. build.sh makes its base where there is none; this Dockerfile stands on nothing."""
    if subprocess.run([program, "image", "inspect", _NOTHING], capture_output=True).returncode:
        empty = subprocess.run(["tar", "-c", "--files-from=/dev/null"], capture_output=True, check=True).stdout
        subprocess.run([program, "import", "-", _NOTHING], input=empty, capture_output=True, check=True)
    return _NOTHING


def _manifest(tag: str) -> dict[str, Any]:
    """What the registry holds under a tag: its manifest, the bytes as `body`, and the `digest`."""
    answer = httpx.get(
        f"https://{HOST}/v2/kennel/manifests/{tag}",
        auth=("AWS", PASSWORD),
        headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"},
        verify=ssl.create_default_context(cafile=str(CERTIFICATES / "ca.crt")),
        trust_env=False,
    ).raise_for_status()
    return {"digest": answer.headers["docker-content-digest"], "body": answer.text, **answer.json()}


def _tell_moto(tag: str) -> None:
    """moto does not see a push; the real ECR would."""
    held = _manifest(tag)
    boto3.client("ecr").put_image(
        repositoryName="kennel", imageManifest=held["body"], imageDigest=held["digest"], imageTag=tag
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_push_prints_the_digest_that_the_registry_holds(
    project: Path, aws_env: dict[str, str], registry: str, engine: str
) -> None:
    done = _push(project, aws_env, "staging", engine=engine)
    assert done.returncode == 0, done.stderr
    held = _manifest(_version(project))
    assert done.stdout == f"{registry}/kennel@{held['digest']}\n"
    assert _manifest("staging")["digest"] == held["digest"]
    # One manifest, no index of manifests: SageMaker takes nothing else.
    assert held["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"


def test_the_repository_is_made_as_promised(project: Path, aws_env: dict[str, str], registry: str) -> None:
    assert _push(project, aws_env).returncode == 0
    ecr = boto3.client("ecr")
    repository = ecr.describe_repositories(repositoryNames=["kennel"])["repositories"][0]
    assert repository["imageTagMutability"] == "IMMUTABLE_WITH_EXCLUSION"
    moving = {entry["filter"] for entry in repository["imageTagMutabilityExclusionFilters"]}
    assert moving == {"dev", "staging", "prod", "latest"}
    assert repository["imageScanningConfiguration"] == {"scanOnPush": True}
    assert repository["encryptionConfiguration"]["encryptionType"] == "AES256"
    policy = json.loads(ecr.get_lifecycle_policy(repositoryName="kennel")["lifecyclePolicyText"])
    assert [rule["selection"]["tagStatus"] for rule in policy["rules"]] == ["untagged"]


def test_a_version_that_is_there_is_not_built_again(project: Path, aws_env: dict[str, str], registry: str) -> None:
    first = _push(project, aws_env)
    version = _version(project)
    _tell_moto(version)
    again = _push(project, aws_env, "prod")
    assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
    assert "building" not in again.stderr
    assert sorted(_images()[0]["imageTags"]) == sorted([version, "prod"])


def test_another_setting_is_another_image_of_the_same_revision(project: Path, aws_env: dict[str, str]) -> None:
    (project / "container/requirements-torch-cpu.txt").touch()
    _commit(project)
    revision = _git(project, "rev-parse", "--short=12", "HEAD")
    ecr: Any = boto3.client("ecr")
    ecr.create_repository(repositoryName="kennel")
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    ecr.put_image(repositoryName="kennel", imageManifest=json.dumps({"mediaType": kind}), imageTag=revision)

    def said(**settings: str) -> str:
        usual = dict.fromkeys(("PRETRAINED", "TORCH", "PLATFORM", "BASE", "RUN_AS"), "")
        engine = "/bin/true"  # agrees to everything, and builds nothing
        env = {**os.environ, **aws_env, **usual, "CONTAINER_ENGINE": engine, **settings}
        command = [project / "build_and_push.sh"]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120).stderr

    image = f"{HOST}/kennel:{revision}"
    assert f"{image} is there already" in said()
    named = said(PRETRAINED="resnet50", TORCH="cpu", PLATFORM="linux/arm64")
    assert f"building {image}-resnet50-cpu-arm64\n" in named
    hashed = said(BASE="mirror/debian:bookworm-slim", RUN_AS="1000:1000")
    assert f"building {image}-base-f7cc9cce-user-189e853c\n" in hashed


@pytest.mark.slow
def test_a_moving_tag_moves_and_another_stays(project: Path, aws_env: dict[str, str], registry: str) -> None:
    first = _version(project)
    assert _push(project, aws_env).returncode == 0
    _tell_moto(first)
    assert _push(project, aws_env, "prod").returncode == 0
    assert _push(project, aws_env, "v1").returncode == 0
    (project / "photo").write_bytes(os.urandom(64))
    _commit(project)
    second = _version(project)
    assert _push(project, aws_env).returncode == 0
    _tell_moto(second)
    assert _push(project, aws_env, "prod").returncode == 0
    refused = _push(project, aws_env, "v1")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "never moves" in refused.stderr
    held = {tag: image["imageDigest"] for image in _images() for tag in image["imageTags"]}
    assert held["prod"] == held[second] != held[first] == held["v1"]


def _images() -> list[dict[str, Any]]:
    return list(boto3.client("ecr").describe_images(repositoryName="kennel")["imageDetails"])  # type: ignore[arg-type]


def test_no_credentials_stay_behind(project: Path, aws_env: dict[str, str], registry: str) -> None:
    home = project.parent / "home"
    home.mkdir()
    done = _push(project, aws_env, HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert list((project.parent / "tmp").iterdir()) == []
    kept = [path for path in home.rglob("*") if path.is_file() and b"auth" in path.read_bytes()]
    assert kept == []
    assert PASSWORD not in done.stdout + done.stderr


def test_a_dirty_tree_is_refused_or_tagged_as_such(project: Path, aws_env: dict[str, str], registry: str) -> None:
    (project / "photo").write_bytes(b"changed")
    refused = _push(project, aws_env)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "uncommitted changes: commit them, or pass --dirty" in refused.stderr
    done = _push(project, aws_env, "--dirty")
    assert done.returncode == 0, done.stderr
    assert f":{_git(project, 'rev-parse', '--short=12', 'HEAD')}-dirty-" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "more", "sentence"),
    [
        (["--fast"], {}, "unknown option '--fast'"),
        (["a b"], {}, "'a b' is no tag"),
        ([], {"CONTAINER_ENGINE": "/bin/false"}, "'/bin/false info' fails"),
        ([], {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "asking AWS who you are"),
        ([], {"KENNEL_REPOSITORY": "Kennel!"}, "Kennel!"),
    ],
)
def test_a_failure_is_a_sentence_and_no_digest(
    project: Path, aws_env: dict[str, str], arguments: list[str], more: dict[str, str], sentence: str
) -> None:
    done = _push(project, aws_env, *arguments, **more, AWS_MAX_ATTEMPTS="1")
    assert done.returncode != 0
    assert done.stdout == ""
    assert sentence in done.stderr


def test_a_failed_build_ends_the_script(project: Path, aws_env: dict[str, str], registry: str) -> None:
    (project / "container/Dockerfile").write_text("FROM scratch\nCOPY absent /\n")
    _commit(project)
    failed = _push(project, aws_env)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "the build failed" in failed.stderr
    assert "pushing" not in failed.stderr


@pytest.mark.parametrize(("command", "attempted"), [("login", "logging in to "), ("push", "pushing ")])
def test_a_login_or_a_push_that_is_refused_ends_the_script(
    project: Path, aws_env: dict[str, str], command: str, attempted: str
) -> None:
    """The engine is a stand-in that does as it is told, but for this command."""
    engine = project.parent / "docker"
    engine.write_text(f'#!/bin/sh\n[ "$1" != {command} ] || {{ echo "denied: not authorized" >&2; exit 1; }}\n')
    engine.chmod(0o755)
    refused = _run_script(project, aws_env, engine, "staging", BASE="scratch")
    assert (refused.returncode, refused.stdout) == (1, "")
    last = refused.stderr.splitlines()[-1]
    assert last.startswith(f"build_and_push: {attempted}{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com")
    assert last.endswith("failed: denied: not authorized")
    assert list((project.parent / "tmp").iterdir()) == []  # no credentials stay behind


def test_the_script_is_clean_for_shellcheck() -> None:
    done = subprocess.run([Path(sys.executable).parent / "shellcheck", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
