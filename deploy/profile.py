"""What a stage is: account, region, names and settings, read once from one TOML file."""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints

from deploy.errors import DeployError

PROFILES = Path(__file__).with_name("profiles.toml")
STAGES = ("dev", "staging", "prod")
VARIANTS = ("real-time", "serverless", "async", "multi-model")
# SageMaker's names have 63 characters; a job's has a date and a time behind this.
NAME_PATTERN = re.compile(r"[a-z][a-z0-9-]{1,19}")


@dataclass(frozen=True)
class Training:
    """Defaults of `train` and `ec2 train`."""

    instance_type: str = "ml.g4dn.xlarge"
    instances: int = 1
    spot: bool = True
    isolated: bool = True
    max_hours: float = 4.0
    volume_gb: int = 50
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Endpoint:
    """The endpoint's shape and how it scales."""

    variant: str = "real-time"
    instance_type: str = "ml.c6i.xlarge"
    min_instances: int = 1
    max_instances: int = 3
    scaling_target: int = 60
    scale_out_cooldown_s: int = 300
    scale_in_cooldown_s: int = 300
    serverless_memory_mb: int = 3072
    serverless_concurrency: int = 10
    capture_percentage: int = 0
    detailed_metrics: bool = False
    latency_alarm_ms: int = 2000
    alarm_email: str = ""


@dataclass(frozen=True)
class Function:
    """The Lambda in front of the endpoint."""

    enabled: bool = True
    provisioned_concurrency: int = 2
    reserved_concurrency: int = 10
    url: str = "iam"
    allowed_url_hosts: tuple[str, ...] = ()
    allowed_buckets: tuple[str, ...] = ()
    tracing: bool = False
    timeout_s: int = 75
    top_k: int = 0
    legacy_response: bool = False
    result_prefix: str = "results/"
    cors_origins: tuple[str, ...] = ()
    pillow: bool = False


@dataclass(frozen=True)
class Profile:
    """One stage of one account."""

    stage: str
    name: str = "kennel"
    region: str = "eu-west-1"
    account: str = ""
    aws_profile: str = ""
    repository: str = "kennel"
    owns_repository: bool = False
    pull_accounts: tuple[str, ...] = ()
    repository_account: str = ""
    training: Training = dataclasses.field(default_factory=Training)
    endpoint: Endpoint = dataclasses.field(default_factory=Endpoint)
    function: Function = dataclasses.field(default_factory=Function)

    @property
    def prefix(self) -> str:
        """What names start with; also the endpoint's own name."""
        return f"{self.name}-{self.stage}"

    @property
    def base_stack(self) -> str:
        return f"{self.prefix}-base"

    @property
    def app_stack(self) -> str:
        return f"{self.prefix}-app"

    @property
    def tags(self) -> dict[str, str]:
        return {"project": self.name, "stage": self.stage}

    def tag_list(self) -> list[dict[str, str]]:
        """The tags as SageMaker, EC2 and CloudFormation write them."""
        return [{"Key": key, "Value": value} for key, value in self.tags.items()]

    @classmethod
    def load(cls, stage: str, file: Path = PROFILES) -> Profile:
        """Read a stage; DeployError names everything in the file that cannot be used."""
        try:
            document = tomllib.loads(file.read_text())
        except FileNotFoundError:
            raise DeployError(f"{file} is not there: it holds the stages' accounts, regions and names") from None
        except tomllib.TOMLDecodeError as error:
            raise DeployError(f"{file} is not TOML: {error}") from error
        problems = [
            f"stage '{name}' is none of {', '.join(STAGES)}" for name in document if name not in (*STAGES, "shared")
        ]
        if stage not in document:
            problems.append(
                f"it has no table [{stage}]; it has {', '.join(name for name in document if name != 'shared')}"
            )
        settings = _merged(document.get("shared", {}), document.get(stage, {}))
        profile = _parse(cls, {"stage": stage, **settings}, at="", problems=problems)
        problems += _inconsistencies(profile)
        if problems:
            raise DeployError(f"{file}, stage '{stage}':\n" + "\n".join(f"  - {problem}" for problem in problems))
        return cast(Profile, profile)


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    tables = {name: {**shared[name], **own.get(name, {})} for name in shared if isinstance(shared[name], dict)}
    return {**shared, **own, **tables}


def _parse(kind: Any, settings: Mapping[str, Any], *, at: str, problems: list[str]) -> Any:
    """A dataclass from a table; every key that does not fit is added to `problems` and left at its default."""
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            problems.append(f"setting '{at}{key}' is unknown" + (f"; did you mean '{at}{near[0]}'?" if near else ""))
        elif dataclasses.is_dataclass(hints[key]) and isinstance(value, dict):
            values[key] = _parse(hints[key], value, at=f"{at}{key}.", problems=problems)
        elif (converted := _converted(value, hints[key])) is None:
            problems.append(f"setting '{at}{key}' is {value!r}; it must be {_spoken(hints[key])}")
        else:
            values[key] = converted
    return kind(**values)


def _converted(value: Any, hint: Any) -> Any:
    if hint == tuple[str, ...]:
        strings = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
        return tuple(value) if strings else None
    if hint is float and type(value) is int:
        return float(value)
    return value if type(value) is hint else None


def _spoken(hint: Any) -> str:
    words = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
    return words.get(hint, "a list of strings" if hint == tuple[str, ...] else "a table")


def _inconsistencies(profile: Profile) -> list[str]:
    endpoint, function, training = profile.endpoint, profile.function, profile.training
    checks = {
        f"name '{profile.name}' must be 2 to 20 lower-case letters, digits and hyphens": bool(
            NAME_PATTERN.fullmatch(profile.name)
        ),
        **{
            f"account '{account}' must be 12 digits": bool(re.fullmatch(r"\d{12}", account))
            for account in filter(None, (profile.account, profile.repository_account, *profile.pull_accounts))
        },
        "owns_repository and repository_account (another account's) exclude each other": (
            not profile.owns_repository or not profile.repository_account
        ),
        "pull_accounts are of the stage that has owns_repository = true": (
            profile.owns_repository or not profile.pull_accounts
        ),
        f"endpoint.variant '{endpoint.variant}' must be one of {', '.join(VARIANTS)}": endpoint.variant in VARIANTS,
        f"endpoint.max_instances {endpoint.max_instances} is below min_instances {endpoint.min_instances}": (
            1 <= endpoint.min_instances <= endpoint.max_instances
        ),
        f"function.url '{function.url}' must be one of off, iam, public": function.url in ("off", "iam", "public"),
        f"function.provisioned_concurrency {function.provisioned_concurrency} does not fit into reserved_concurrency "
        f"{function.reserved_concurrency}": 1 <= function.provisioned_concurrency <= function.reserved_concurrency,
        f"function.timeout_s {function.timeout_s} must be from 10 to 900": 10 <= function.timeout_s <= 900,
        f"function.top_k {function.top_k} must be from 1 to 9999, or 0 for the model's": 0 <= function.top_k <= 9999,
        f"function.result_prefix '{function.result_prefix}' must be a folder's key that ends with a slash": bool(
            re.fullmatch(r"[^/].*/", function.result_prefix)
        ),
        "an asynchronous endpoint answers in S3, which the function does not wait for: set function.enabled = false": (
            endpoint.variant != "async" or not function.enabled
        ),
        "a multi-model endpoint must be told which model, which the function does not: set function.enabled = false": (
            endpoint.variant != "multi-model" or not function.enabled
        ),
        "training.subnets and training.security_groups go together": bool(training.subnets)
        == bool(training.security_groups),
    }
    return [problem for problem, holds in checks.items() if not holds]
