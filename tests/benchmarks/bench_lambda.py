"""The function's package and its cold start, beside an empty function's and the usual way's.

An init is measured from the start of a real awslambdaric process to its first request for work; what counts is the
time beyond that of a function that does nothing. The usual way is a function that is built on AWS Lambda Powertools
(event handler, logger, metrics, tracer) and boto3.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import aws_lambda_powertools

from deploy.lambda_zip import build
from tests.benchmarks.table import Effort, Table
from tests.lambda_runtime import Environment, RuntimeStandIn, event, function

WARM_CALLS: Final = 100

EMPTY: Final = "def handler(event, context):\n    return {}\n"
USUAL: Final = """
import boto3
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.event_handler import LambdaFunctionUrlResolver
logger, metrics, app = Logger(service="dogs"), Metrics(namespace="dogs", service="dogs"), LambdaFunctionUrlResolver()
client = boto3.client("sagemaker-runtime")
def handler(event, context):
    return app.resolve(event, context)
"""


class Init(NamedTuple):
    wall_ms: float
    cpu_ms: float


def package_and_calls(table: Table, effort: Effort) -> None:
    with tempfile.TemporaryDirectory() as name, RuntimeStandIn() as runtime:
        folder = Path(name)
        roots = {"empty": folder / "empty/task", "usual": folder / "usual/task", "ours": folder / "ours/task"}
        _write(roots["empty"], EMPTY)
        _write(roots["usual"], USUAL)
        zipfile.ZipFile(io.BytesIO(build().data)).extractall(roots["ours"])
        inits = _inits(roots, runtime.env, rounds=3 * effort.repeat)
        cold_ms, warm_ms = _calls(roots["ours"], runtime.env)
    _report(table, inits, cold_ms, warm_ms)


def _write(root: Path, source: str) -> None:
    root.mkdir(parents=True)
    (root / "classify.py").write_text(source, encoding="utf-8")


def _inits(roots: Mapping[str, Path], env: Mapping[str, str], *, rounds: int) -> dict[str, Init]:
    """The median init of each kind of function; their rounds take turns, so that noise meets all alike."""
    found: dict[str, list[Init]] = {kind: [] for kind in roots}
    for _ in range(rounds):
        for kind, root in roots.items():
            environment = Environment(root, env)
            found[kind].append(Init(environment.init_s * 1000, environment.init_cpu_s * 1000))
            environment.close()
    return {kind: Init(*map(statistics.median, zip(*inits, strict=True))) for kind, inits in found.items()}


def _calls(root: Path, env: Mapping[str, str]) -> tuple[float, float]:
    """Milliseconds within the function of the first call after an init, and (median) of later ones."""
    with function(root, env) as made:
        for _ in range(WARM_CALLS + 1):
            made.invoke(event("direct_image"))
        (environment,) = made.environments
        cold, *warm = [float(record["total_ms"]) for record in environment.records]
    return cold, statistics.median(warm)


def _report(table: Table, inits: Mapping[str, Init], cold_ms: float, warm_ms: float) -> None:
    empty, usual, ours = inits["empty"], inits["usual"], inits["ours"]
    powertools = Path(aws_lambda_powertools.__file__).parent
    usual_kb = sum(path.stat().st_size for path in powertools.rglob("*.py")) / 1000
    package = build().data
    ours_kb = sum(entry.file_size for entry in zipfile.ZipFile(io.BytesIO(package)).infolist()) / 1000
    lower = partial(table.add, smaller=True)
    lower("package, unpacked (the usual way's own code not counted)", ours=ours_kb, other=usual_kb, unit="kB")
    lower("package, zipped", ours=len(package) / 1000, unit="kB")
    lower(
        "init beyond an empty function's",
        ours=ours.wall_ms - empty.wall_ms,
        other=usual.wall_ms - empty.wall_ms,
        unit="ms",
        limit=400,
        essential=True,
    )
    lower("the same in CPU time", ours=ours.cpu_ms - empty.cpu_ms, other=usual.cpu_ms - empty.cpu_ms, unit="ms")
    lower("first call, endpoint answering at once", ours=cold_ms, unit="ms")
    lower("later calls, endpoint answering at once", ours=warm_ms, unit="ms")
