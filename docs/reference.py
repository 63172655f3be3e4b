"""docs/reference.md, written from the code that it describes: `python -m docs.reference` (`make docs`).

What a name means is said here where the code has no words for it; a name of the code that is missing here is an error.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from container import errors
from container.artifact import FileEntry, Manifest
from container.contract import SageMakerPaths, metric_definitions
from container.errors import ConfigError, KennelError
from container.preprocessing import FORMATS, MAX_PIXELS, Preprocessing
from deploy.profile import Profile
from serve import api, front, models, openapi
from serve.config import ServeConfig
from serve.options import Options
from train.config import TrainConfig, options
from train.hyperparameters import Option, Range, limits

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs/reference.md"

_PROGRAMS: Final[Mapping[str, str]] = {
    "train": "trains on the channels and leaves an artifact; `--help`, `--describe`",
    "tune": "searches for hyperparameters on one machine; `--trials 20`, and values that are fixed",
    "doctor": "looks at the photos that `train` would train on",
    "import-weights": "makes an artifact of a state dict; `--weights`, `--classes`, `--model-dir`, `--image-size`, "
    "`--top-k`, `--normalise`",
    "serve": "serves the artifact in `/opt/ml/model`, or many",
    "selftest": "says whether this image and this machine are fit",
}
# Environment variable -> the field of ServeConfig whose default it has, and what it is for.
_SERVING: Final[Mapping[str, tuple[str, str]]] = {
    "SAGEMAKER_BATCH": ("", "set by batch transform: the deadline is longer"),
    "SAGEMAKER_BIND_TO_PORT": ("port", "where to listen"),
    "SAGEMAKER_SAFE_PORT_RANGE": ("safe_ports", "set by SageMaker: ports that the container may use"),
    "SAGEMAKER_MAX_PAYLOAD_IN_MB": ("max_payload_mib", "largest body, in MiB; 0 (batch transform): 100"),
    "SAGEMAKER_MODEL_SERVER_TIMEOUT": ("", "the same in minutes, as AWS's toolkits have it; seconds win"),
    "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": (
        "deadline_s",
        "seconds from a request's arrival to its answer; batch: 590",
    ),
    "SAGEMAKER_STARTUP_TIMEOUT": ("startup_timeout_s", "seconds that the first worker may take to be ready"),
    "SAGEMAKER_MULTI_MODEL": ("multi_model", "serve many models, loaded by request"),
    "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": ("default_accept", "what no Accept, or `*/*`, is answered with"),
    "SAGEMAKER_MODEL_SERVER_WORKERS": (
        "workers",
        "processes a model; default: one a core or GPU, as memory allows; 1 in multi-model mode",
    ),
    "KENNEL_SERVE_THREADS": ("threads", "threads a worker; default: one a core, 4 at most"),
}
_OPTIONS: Final[Mapping[str, tuple[str, str]]] = {
    "top_k": ("1 or more", "classes in the answer; default: the artifact's"),
    "explain": ("cam", "adds `heat_map`, a PNG in base64 of where the network looked"),
    "embed": ("true, false", "adds `embedding`, the features before the head, for similarity search"),
    "log_label": ("true, false", "writes the answer's label to the log, which is else left out"),
}
_MANIFEST: Final[Mapping[str, str]] = {
    "schema_version": "of this file; an image refuses one that it does not know",
    "version": "twelve hexadecimal digits that change with the served network; part of every answer",
    "created": "when, in UTC",
    "architecture": "a ResNet of torchvision",
    "class_names": "in the order of the network's outputs",
    "preprocessing": "how a photo becomes the network's input, see below",
    "top_k": "classes in an answer unless a request asks for another number",
    "network": "the file that is served",
    "precision": "of that file: float32 or int8",
    "temperature": "what logits are divided by before the softmax, fitted on validation",
    "confidence_threshold": "probability from which an answer is `confident`; null: there was nothing to fit it on",
    "head": "`linear`, or `mlp` for imported heads of several layers, which have no heat maps",
    "files": "every other file of the artifact, by name: `sha256` and `bytes`",
    "metrics": "what was measured on validation and test",
    "hyperparameters": "what it was trained with",
    "versions": "of the packages that trained it",
}
_PREPROCESSING: Final[Mapping[str, str]] = {
    "resize_size": "with `crop_size`: the centre square of crop_size / resize_size of the shorter side is shown",
    "crop_size": "pixels a side of what the network sees",
    "interpolation": "bilinear or bicubic",
    "mean": "subtracted from each channel (R, G, B) of values in 0 … 1",
    "std": "each channel is divided by it",
}
_PROFILE: Final[Mapping[str, str]] = {
    "stage": "the table's own name",
    "name": "first part of every name",
    "region": "",
    "account": "twelve digits; a command with another account's credentials is refused",
    "aws_profile": "which of the aws command's profiles to use; empty: its default",
    "repository": "in ECR; the stages of one account share it",
    "owns_repository": "whether this stage's base stack holds the repository",
    "pull_accounts": "with it, further accounts that may pull from the repository",
    "repository_account": "without it, the account that holds the repository where that is another one",
    "training.instance_type": "",
    "training.instances": "hosts of one training",
    "training.spot": "cheaper; an interrupted job goes on from its checkpoint",
    "training.isolated": "no network and no credentials inside the container",
    "training.max_hours": "after which a job is ended",
    "training.volume_gb": "disk of an instance",
    "training.subnets": "train in your own VPC; go with `security_groups`",
    "training.security_groups": "",
    "endpoint.variant": "real-time, serverless, async or multi-model",
    "endpoint.instance_type": "",
    "endpoint.min_instances": "",
    "endpoint.max_instances": "",
    "endpoint.scaling_target": "invocations a minute an instance (async: backlog an instance)",
    "endpoint.scale_out_cooldown_s": "seconds",
    "endpoint.scale_in_cooldown_s": "seconds",
    "endpoint.serverless_memory_mb": "1024 to 6144, in steps of 1024",
    "endpoint.serverless_concurrency": "calls at a time",
    "endpoint.capture_percentage": "of requests and answers kept in the bucket; 0: none",
    "endpoint.detailed_metrics": "SageMaker's enhanced metrics, each minute",
    "endpoint.latency_alarm_ms": "p99 above which the alarm rings, and an update is taken back",
    "endpoint.alarm_email": "where alarms are mailed to",
    "function.enabled": "whether there is a Lambda in front of the endpoint",
    "function.provisioned_concurrency": "environments that are kept warm, on the alias `live`",
    "function.reserved_concurrency": "most calls at a time",
    "function.url": "off, iam or public",
    "function.allowed_url_hosts": "hosts that photos may be fetched from",
    "function.allowed_buckets": "buckets that photos may be read from",
    "function.tracing": "X-Ray",
    "function.timeout_s": "its time-out, from which all others follow; 29 behind API Gateway",
    "function.top_k": "predictions in an answer; 0: the model's number",
    "function.legacy_response": "direct calls get the usual course project's answer",
    "function.result_prefix": "where results of S3 notifications go",
    "function.cors_origins": "origins whose pages may read answers",
    "function.pillow": "packages Pillow, which scales photos down that are too large",
}


def page() -> str:
    """The whole text."""
    sections = (_introduction, _programs, _hyperparameters, _metrics, _variables, _http, _manifest, _profile)
    return "\n\n".join("\n".join(section()) for section in sections) + "\n"


def _introduction() -> Iterator[str]:
    yield "# Reference"
    yield ""
    yield "Written by `make docs` from the code; a test holds the two together. The Lambda's settings and answers are"
    yield "in [lambda.md](lambda.md), the commands that drive AWS in [aws.md](aws.md#commands)."


def _programs() -> Iterator[str]:
    yield "## Programs in the image"
    yield ""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    _same("programs", set(scripts), _PROGRAMS)
    yield from _table(("program", ""), [(f"`{name}`", words) for name, words in _PROGRAMS.items()])


def _hyperparameters() -> Iterator[str]:
    yield "## Hyperparameters"
    yield ""
    yield "In `hyperparameters.json`, on `train`'s command line (`--batch-size 64`), or with `--set batch_size=64` in"
    yield "`python -m deploy`. `docker run kennel train --describe` prints them as JSON."
    yield ""
    defaults = TrainConfig().to_json()
    rows = [
        (f"`{name}`", _value(defaults[name]), limits(option), _searched(option), option.help)
        for name, (_, option) in options().items()
    ]
    yield from _table(("name", "default", "allowed", "searched by tuning", ""), rows)


def _searched(option: Option) -> str:
    if isinstance(option.tune, Range):
        return f"{option.tune.low:g} to {option.tune.high:g}{', logarithmic' if option.tune.log else ''}"
    return ", ".join(option.tune or ())


def _metrics() -> Iterator[str]:
    yield "## Metrics of training"
    yield ""
    yield "Each is printed alone on a line, and found there by SageMaker. Tuning maximises `validation:best_accuracy`."
    yield "With `strategy=head` only the first epoch has `train:images_per_second`: photos are read once, before it."
    yield ""
    yield from _table(("metric", "regex"), [(f"`{one['Name']}`", f"`{one['Regex']}`") for one in metric_definitions()])


def _variables() -> Iterator[str]:
    yield "## Environment variables of the container"
    yield ""
    yield f"Both programs: `SAGEMAKER_BASE_DIR` (default `{SageMakerPaths().base}`) moves the whole tree. Training on"
    yield "several hosts: `KENNEL_HOST_WAIT_SECONDS` is how many seconds hosts wait for each other at the start (600)."
    yield "Those of `container/build.sh` and `./build_and_push.sh` are listed by `--help` and in their first lines."
    yield ""
    yield "`serve` reads these; an unusable value, or an unknown name that begins with `KENNEL_SERVE_`, ends it with"
    yield "one sentence that names every problem."
    yield ""
    plain, asked = ServeConfig.from_env({}), _asked_of_environment()
    _same("serving's variables", asked, _SERVING)
    rows = [
        (f"`{name}`", _value(getattr(plain, field) if field else None), _allowed(name), words)
        for name, (field, words) in _SERVING.items()
    ]
    yield from _table(("name", "default", "must be", ""), rows)


class _Listening(dict[str, str]):
    """An environment without variables, which remembers what was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.append(key)
        return default


def _asked_of_environment() -> set[str]:
    listening = _Listening()
    ServeConfig.from_env(listening)
    return set(listening.asked) - {"SAGEMAKER_BASE_DIR"}


def _allowed(name: str) -> str:
    """What `serve` says that a variable must be."""
    try:
        ServeConfig.from_env({name: "?"})
    except ConfigError as error:
        return str(error).partition("it must be ")[2]
    raise ValueError(f"{name} may be anything")


def _http() -> Iterator[str]:
    yield "## HTTP API"
    yield ""
    yield "`GET /openapi.json` answers with the whole description of what is served. In multi-model mode"
    yield "`/models/{name}/invoke` takes the place of `/invocations`."
    yield ""
    paths = {**openapi.document(multi_model=False)["paths"], **openapi.document(multi_model=True)["paths"]}
    rows = [
        (f"`{method.upper()} {path}`", entry["summary"], ", ".join(entry["responses"]))
        for path, methods in paths.items()
        for method, entry in methods.items()
        if method != "parameters"
    ]
    yield from _table(("", "", "answers"), rows)
    yield ""
    yield f"**Content types**: {_names(api.CONTENT_TYPES)}. What a photo is, is told by its first bytes"
    yield f"({', '.join(FORMATS)}; up to {MAX_PIXELS // 10**6} megapixels, fewer where decoding takes more memory)."
    yield 'JSON is `{"instances": [{"b64": …}, …]}`, JSON lines one such instance a line.'
    yield f"**Accept**: {_names(api.ANSWER_TYPES)}."
    yield ""
    yield f"A request may carry `{api.ATTRIBUTES_HEADER}: top_k=3,embed=true`. Other attributes are echoed and"
    yield "left alone, but a name that is one of these but for one character is refused as misspelt."
    yield ""
    _same("request options", {field.name for field in dataclasses.fields(Options)}, _OPTIONS)
    yield from _table(("option", "values", ""), [(f"`{name}`", *words) for name, words in _OPTIONS.items()])
    yield ""
    yield 'Errors are `{"error": {"code": …, "message": …, "request_id": …}}`; the id is also in the header'
    yield "`X-Request-Id`, and is the caller's own where it sent one."
    yield ""
    yield from _table(("status", "codes", "when"), _error_rows(paths))


def _error_rows(paths: Mapping[str, Any]) -> list[tuple[str, ...]]:
    words = {
        status: response["description"]
        for methods in paths.values()
        for entry in methods.values()
        if isinstance(entry, dict)
        for status, response in entry["responses"].items()
        if status != "200"
    }
    codes = _codes()
    return [
        (status, _names(sorted(codes.get(status, ()))), words.get(status, "")) for status in sorted({*words, *codes})
    ]


def _codes() -> dict[str, set[str]]:
    """The codes of each status: of the front's own answers, and of errors that are raised behind it."""
    found: dict[str, set[str]] = {}
    pattern = r'status (\d+) content-type application/json lf-string \'{"error": {"code": "(\w+)"'
    for multi_model in (False, True):
        for status, code in re.findall(pattern, front.configuration(_front(multi_model))):
            found.setdefault(status, set()).add(code)
    for module in (errors, models):
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, KennelError):
                found.setdefault(str(kind.status), set()).add(kind.code)
    return found


def _front(multi_model: bool) -> front.FrontConfig:
    """Any values of the right types: only the texts of the answers are read."""
    any_of: Mapping[str, Any] = {"int": 1, "float": 1.0, "str": "unix@/socket", "Path": Path("/"), "bool": multi_model}
    return front.FrontConfig(**{field.name: any_of[str(field.type)] for field in dataclasses.fields(front.FrontConfig)})


def _manifest() -> Iterator[str]:
    yield "## The artifact's manifest.json"
    yield ""
    example = Manifest(
        architecture="resnet50",
        class_names=("ants", "bees"),
        preprocessing=Preprocessing(),
        top_k=5,
        files={"model.onnx": FileEntry(sha256="3f786850e387" + "0" * 52, bytes=1)},
    )
    _same("the manifest's entries", set(example.to_json()), _MANIFEST)
    yield from _table(("entry", ""), [(f"`{name}`", words) for name, words in _MANIFEST.items()])
    yield ""
    yield "`preprocessing`:"
    yield ""
    plain = Preprocessing().to_json()
    _same("preprocessing's entries", set(plain), _PREPROCESSING)
    rows = [(f"`{name}`", _value(plain[name]), words) for name, words in _PREPROCESSING.items()]
    yield from _table(("entry", "default", ""), rows)


def _profile() -> Iterator[str]:
    yield "## Settings of a stage"
    yield ""
    yield "In [`deploy/profiles.toml`](../deploy/profiles.toml); `training.spot` is `spot` in the table"
    yield "`[shared.training]` or `[prod.training]`. The defaults are those of a file that does not name the setting."
    yield ""
    found = dict(_flat(Profile(stage="dev")))
    _same("settings of a stage", set(found), _PROFILE)
    rows = [(f"`{name}`", _value(found[name]), words) for name, words in _PROFILE.items() if name != "stage"]
    yield from _table(("setting", "default", ""), rows)


def _flat(settings: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from _flat(value, f"{field.name}.")
        else:
            yield f"{at}{field.name}", value


def _same(what: str, code: set[str], described: Mapping[str, Any]) -> None:
    if code != set(described):
        raise ValueError(f"{what}: the code and docs/reference.py differ in {sorted(code ^ set(described))}")


def _value(value: Any) -> str:
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _names(values: Iterable[str]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield _row(head)
    yield "|---" * len(head) + "|"
    for row in rows:
        yield _row([cell.replace("|", "\\|") for cell in row])


def _row(cells: Sequence[str]) -> str:
    return re.sub(" +", " ", f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
