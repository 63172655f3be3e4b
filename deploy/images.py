"""The image in ECR, named by what cannot change: its digest."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from deploy.aws import Aws
from deploy.errors import DeployError
from deploy.programs import find_engine

_DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")
_IN_ECR = re.compile(r"(\d{12})\.dkr\.ecr\.[^/]+/(.+)@(sha256:[0-9a-f]{64})")


def image_uri(aws: Aws, tag: str) -> str:
    """REPOSITORY@sha256:… of a tag; a full digest URI is returned as it is."""
    if _DIGEST.fullmatch(tag):
        return tag
    repository, owner = aws.profile.repository, aws.profile.repository_account
    if owner not in ("", aws.account):
        raise DeployError(
            f"repository '{repository}' is of account {owner}, where tags may move: name the image by its digest, "
            "REPOSITORY@sha256:…, as build_and_push.sh printed it there"
        )
    found = aws.found("ecr", "describe_repositories", "RepositoryNotFoundException", repositoryNames=[repository])
    if found is None:
        raise DeployError(f"repository '{repository}' is not in ECR of {aws.profile.region}: ./build_and_push.sh {tag}")
    answer = aws.found(
        "ecr", "describe_images", "ImageNotFoundException", repositoryName=repository, imageIds=[{"imageTag": tag}]
    )
    if answer is None:
        raise DeployError(
            f"image '{repository}:{tag}' is not in ECR of {aws.profile.region}: ./build_and_push.sh {tag}"
        )
    return f"{found['repositories'][0]['repositoryUri']}@{answer['imageDetails'][0]['imageDigest']}"


def tags(aws: Aws, uri: str) -> list[str]:
    """What the image of a digest URI is called in ECR; nothing where it is not there, or not ours to ask."""
    found = _IN_ECR.fullmatch(uri)
    if found is None:
        return []
    account, repository, digest = found.groups()
    answer = aws.found(
        *("ecr", "describe_images", "ImageNotFoundException", "RepositoryNotFoundException", "AccessDeniedException"),
        registryId=account,
        repositoryName=repository,
        imageIds=[{"imageDigest": digest}],
    )
    return answer["imageDetails"][0].get("imageTags", []) if answer else []


def description(image: str, *, file: Path | None = None) -> dict[str, Any]:
    """What the image says of itself (`train --describe`): metric definitions, objective, parameter ranges."""
    text = _read(file) if file else _ask(image)
    try:
        answer = json.loads(text)
        return {key: answer[key] for key in ("metric_definitions", "objective", "parameter_ranges")}
    except (ValueError, KeyError, TypeError) as error:
        raise DeployError(
            f"the description of {image} cannot be used ({error}): is it what `train --describe` printed?"
        ) from error


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise DeployError(f"{file} cannot be read: {error.strerror}") from error


def _ask(image: str) -> str:
    engine = find_engine()
    hint = "give --description FILE with what `train --describe` prints in the image"
    if engine is None:
        raise DeployError(f"asking {image} for its tuning ranges needs docker or podman; or {hint}")
    done = subprocess.run([engine, "run", "--rm", image, "train", "--describe"], capture_output=True, text=True)
    if done.returncode:
        raise DeployError(f"`{engine} run {image} train --describe` failed: {done.stderr.strip()[-500:]}\n{hint}")
    return done.stdout
