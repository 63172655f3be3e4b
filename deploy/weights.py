"""Whether a job without a network will find the pretrained weights that it starts from."""

from __future__ import annotations

import re

from container.contract import FALSE_WORDS
from deploy import images
from deploy.aws import Aws
from deploy.errors import DeployError
from deploy.training import Job

# What the image trains where nothing is said (train/config.py; a test holds the two together).
DEFAULT_ARCHITECTURE = "resnet50"
# A version as build_and_push.sh names it: the revision, then the network whose weights are in the image, if any are.
_VERSION = re.compile(r"[0-9a-f]{12,}(-dirty-[0-9a-f]{12})?(-(?P<weights>resnet\d+))?(-.+)?")


def require(aws: Aws, job: Job, *, offline: bool) -> tuple[str, ...]:
    """Raise where it will find none, which it would tell only once it is billed; else what is not known of them."""
    architecture = job.hyperparameters.get("architecture", DEFAULT_ARCHITECTURE)
    wanted = job.hyperparameters.get("pretrained", "true").lower() not in FALSE_WORDS
    if not (offline and wanted) or "pretrained" in job.channels:
        return ()
    held = _held(aws, job.image)
    if held is None:
        return (f"no network and no channel 'pretrained': the weights of {architecture} must be in the image",)
    if architecture not in held:
        raise DeployError(
            f"the job has no network and no channel 'pretrained', and its image holds {' and '.join(held) or 'no'} "
            f"weights; training starts from those of {architecture}\n"
            f"What to do: PRETRAINED={architecture} ./build_and_push.sh TAG, or --channel pretrained=s3://…, or "
            "--set pretrained=false"
        )
    return ()


def _held(aws: Aws, image: str) -> set[str] | None:
    """The networks whose weights lie in the image by its tags; None where no tag is of build_and_push.sh."""
    versions = [found for tag in images.tags(aws, image) if (found := _VERSION.fullmatch(tag))]
    return {found["weights"] for found in versions if found["weights"]} if versions else None
