"""What the laptop's side raises: where, what AWS said, what to do."""

from __future__ import annotations

from container.errors import UserError

_ASK_FOR_MORE = "ask for more in Service Quotas"
_LIMITED = "AWS limits how often this may be asked; repeat in a minute"
_NOT_ALLOWED = "ask for this action on this resource, or check which account and profile you use: `doctor`"
_REMEDIES = {
    "AccessDenied": _NOT_ALLOWED,
    "AccessDeniedException": _NOT_ALLOWED,
    "UnauthorizedOperation": _NOT_ALLOWED,
    "403": _NOT_ALLOWED,
    "NoCredentials": "`aws configure` or `aws sso login`, and name the profile as `aws_profile` in profiles.toml",
    "ExpiredToken": "log in again: `aws sso login`",
    "ExpiredTokenException": "log in again: `aws sso login`",
    "RequestExpired": "set this machine's clock: AWS takes no request that is minutes off",
    "RequestTimeTooSkewed": "set this machine's clock: AWS takes no request that is minutes off",
    "InvalidClientTokenId": "the access key does not exist: `aws configure`, or choose another `aws_profile`",
    "SignatureDoesNotMatch": "the secret key is wrong, or this machine's clock: `aws configure`",
    "AuthFailure": "the credentials are not valid in this region: `doctor`",
    "UnrecognizedClientException": "the credentials are not valid in this region: `doctor`",
    "ResourceLimitExceeded": f"{_ASK_FOR_MORE}, take fewer or smaller ones, or try --spot: it has a quota of its own",
    "InstanceLimitExceeded": f"{_ASK_FOR_MORE} (quotas of EC2 count vCPUs)",
    "VcpuLimitExceeded": f"{_ASK_FOR_MORE} (quotas of EC2 count vCPUs)",
    "MaxSpotInstanceCountExceeded": f"{_ASK_FOR_MORE} (spot has a quota of its own), or --no-spot",
    "LimitExceededException": _ASK_FOR_MORE,
    "ServiceQuotaExceededException": _ASK_FOR_MORE,
    "InsufficientInstanceCapacity": "AWS has none free: another zone, another type, or later",
    "CapacityError": "AWS has none free: another type, or later",
    "ResourceInUse": "the name is taken: choose another with --name",
    "IdempotentParameterMismatch": "an instance of this name was launched with other settings: choose another --name",
    "AlreadyExistsException": "the name is taken by another stack",
    "ThrottlingException": _LIMITED,
    "Throttling": _LIMITED,
    "TooManyRequestsException": _LIMITED,
    "RequestLimitExceeded": _LIMITED,
    "SlowDown": _LIMITED,
    "NoSuchBucket": "the base stack makes the bucket: `base apply`",
    "InvalidBucketName": "`name` in profiles.toml becomes part of the bucket's name: small letters, digits, hyphens",
    "RepositoryNotFoundException": "the base stack makes the repository: `base apply`, then ./build_and_push.sh",
    "ImageNotFoundException": "push it first: ./build_and_push.sh TAG",
    "ModelError": "the container's own words are above; its log: `endpoint status`",
    "ModelNotReadyException": "the model is still loading: repeat in a minute",
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
