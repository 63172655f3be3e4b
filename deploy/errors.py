"""What the laptop's side raises: where, what AWS said, what to do."""

from __future__ import annotations

from container.errors import UserError

_REMEDIES = {
    "AccessDenied": "ask for this action on this resource, or check which account you use: `doctor`",
    "AccessDeniedException": "ask for this action on this resource, or check which account you use: `doctor`",
    "UnauthorizedOperation": "ask for this action, or check which account and profile you use: `doctor`",
    "ExpiredToken": "log in again: `aws sso login`",
    "ExpiredTokenException": "log in again: `aws sso login`",
    "UnrecognizedClientException": "the credentials are not valid in this region: `doctor`",
    "InvalidClientTokenId": "the access key does not exist: `aws configure`, or choose another `aws_profile`",
    "ResourceLimitExceeded": "ask for more in Service Quotas, take fewer or smaller instances, or try --spot: "
    "spot has a quota of its own",
    "InstanceLimitExceeded": "ask for more in Service Quotas (quotas of EC2 count vCPUs)",
    "VcpuLimitExceeded": "ask for more in Service Quotas (quotas of EC2 count vCPUs)",
    "InsufficientInstanceCapacity": "AWS has none free: another zone, another type, or later",
    "CapacityError": "AWS has none free: another type, or later",
    "ResourceInUse": "the name is taken: choose another with --name",
    "AlreadyExistsException": "the name is taken by another stack",
    "ThrottlingException": "AWS limits how often this may be asked; repeat in a minute",
    "Throttling": "AWS limits how often this may be asked; repeat in a minute",
    "NoSuchBucket": "the base stack makes the bucket: `base apply`",
    "RepositoryNotFoundException": "the base stack makes the repository: `base apply`, then ./build_and_push.sh",
    "ImageNotFoundException": "push it first: ./build_and_push.sh TAG",
    "NoCredentials": "`aws configure` or `aws sso login`, and name the profile as `aws_profile` in profiles.toml",
    "Unreachable": "check the network, the proxy and the region's name",
}


class DeployError(UserError):
    """Whoever runs the command can mend it."""


class AwsError(DeployError):
    """AWS said no. `aws_code` is its own word for it."""

    def __init__(self, *, where: str, code: str, said: str) -> None:
        self.where, self.aws_code, self.said = where, code, said
        remedy = f"\nWhat to do: {_REMEDIES[code]}." if code in _REMEDIES else ""
        super().__init__(f"{where}\nAWS said {code}: {said}{remedy}")
