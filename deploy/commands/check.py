"""`doctor`, `audit`, `invoke` and `loadtest`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from container.contract import PHOTO_SUFFIXES
from deploy import audit as auditing
from deploy import doctor as examination
from deploy import endpoint
from deploy import loadtest as load
from deploy.aws import Aws
from deploy.commands.common import NOTHING, Context, PlanOnly, aws_of, only_reads, proceed, say, screen
from deploy.endpoint import load_factor
from deploy.errors import DeployError
from deploy.plan import Plan, Step
from deploy.pricing import load_prices
from deploy.sizing import Sizing, size


def doctor(context: Context, plan: PlanOnly = False) -> None:
    """Whether this laptop and account are ready; what is not, and what to do."""
    if only_reads("this machine, and the account's stacks, bucket and quotas", plan_only=plan):
        return
    findings = examination.examine(aws_of(context))
    for finding in findings:
        screen.print(f"[{'green' if finding.fine else 'red'}]{'ok' if finding.fine else 'no':3}[/]", end="")
        say(f"{finding.what}: {finding.words}".replace("\n", "\n     "))
    if not all(finding.fine for finding in findings):
        raise typer.Exit(1)


def audit(context: Context, plan: PlanOnly = False) -> None:
    """What is too open or left over: FullAccess, wildcards, unused roles, roles of gone functions, public buckets."""
    if only_reads("the stage's roles with their policies, its functions, and its buckets", plan_only=plan):
        return
    problems = auditing.examine(aws_of(context))
    table = Table("where", "what", "what to do", box=None, pad_edge=False)
    for problem in problems:
        table.add_row(problem.where, problem.what, problem.remedy)
    if problems:
        screen.print(table)
        raise typer.Exit(1)
    say("nothing is too open, nothing is left over")


def invoke(
    context: Context,
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO…")],
    model: Annotated[str, typer.Option(help="Which model of a multi-model endpoint, e.g. dogs.tar.gz.")] = "",
    plan: PlanOnly = False,
) -> None:
    """Classify photos with the endpoint, one JSON line each."""
    aws = aws_of(context)
    read = [(photo, _read(photo)) for photo in photos]
    if plan:
        step = Step("run", f"{len(read)} photos to endpoint {aws.profile.prefix}")
        proceed(Plan(title="invoke", steps=(step,), cost=_calls_cost(aws)), plan_only=True)
        return
    for photo, data in read:
        answer = _parsed(endpoint.invoke(aws, data, model=model))
        say(json.dumps({"photo": str(photo), **(answer if isinstance(answer, dict) else {"answer": answer})}))


def loadtest(
    context: Context,
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO…", help="Photos, or folders of them.")],
    url: Annotated[str, typer.Option(help="A container instead of the endpoint, e.g. http://127.0.0.1:8080.")] = "",
    model: Annotated[str, typer.Option(help="Which model of a multi-model endpoint, e.g. dogs.tar.gz.")] = "",
    latency_ms: Annotated[float, typer.Option(help="The bound that 99 of 100 answers keep.")] = 500,
    seconds: Annotated[float, typer.Option(help="Length of each round.")] = 20,
    peak_per_s: Annotated[float, typer.Option("--peak", help="Your traffic's peak, requests a second.")] = 10,
    plan: PlanOnly = False,
) -> None:
    """How many requests a second it holds, and what follows: scaling target, instances, concurrency, cost."""
    aws = aws_of(context)
    bodies = [_read(path) for photo in photos for path in _expand(photo)]
    target = url or f"endpoint {aws.profile.prefix}"
    step = Step("run", f"rounds of {seconds:g} s against {target} until p99 passes {latency_ms:g} ms")
    cost = NOTHING if url else f"{_calls_cost(aws)}; what scaling adds meanwhile"
    if not proceed(Plan(title="loadtest", steps=(step,), cost=cost), plan_only=plan):
        return
    with load.to_container(url) if url else load.to_endpoint(aws, model=model) as send:
        best = load.run(send, bodies, bound_ms=latency_ms, seconds=seconds, say=lambda found: say(_round_words(found)))
    say(f"holds {best.requests_per_s:.1f} requests/s with {best.clients} clients at p99 {best.p99_ms:.0f} ms")
    _show_sizing(aws, best, peak_per_s)


def _parsed(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError as error:
        raise DeployError(f"the endpoint's answer is not JSON: {answer[:200]!r}") from error


def _show_sizing(aws: Aws, best: load.Round, peak_per_s: float) -> None:
    settings = aws.profile.endpoint
    found = size(best, peak_per_s=peak_per_s, endpoint=settings)
    machine = "serverless" if settings.variant == "serverless" else settings.instance_type
    say(f"what follows for a peak of {peak_per_s:g} requests/s, if {machine} is as fast as this:")
    if found.instances is None:
        say(f"  endpoint.serverless_concurrency = {found.serverless_concurrency}  (calls at p99 that overlap)")
    else:
        rule = f"{best.requests_per_s:.1f} x {load_factor(settings.variant):g} x 60"
        unit = "requests that wait" if settings.variant == "async" else "invocations a minute"
        say(f"  endpoint.scaling_target = {found.scaling_target}  ({rule}: {unit}, an instance)")
        say(f"  instances at the peak = {found.instances}  (endpoint.max_instances is {settings.max_instances})")
    if aws.profile.function.enabled:
        say(f"  function.provisioned_concurrency = {found.provisioned_concurrency}  (calls at p50 that overlap)")
        say(f"  function.reserved_concurrency = {found.reserved_concurrency}  (twice the peak at p99)")
    say(f"  if the peak lasted all month: {_month_words(aws, found)}; {load_prices().caveat}")


def _month_words(aws: Aws, found: Sizing) -> str:
    if found.endpoint_dollars is None:
        return f"{aws.profile.endpoint.instance_type} is not in prices.toml"
    words = f"${found.endpoint_dollars:.0f} for the endpoint"
    if not aws.profile.function.enabled:
        return words
    both = found.endpoint_dollars + found.function_dollars
    return f"${both:.0f}, {words} and ${found.function_dollars:.0f} for the function"


def _calls_cost(aws: Aws) -> str:
    """What calls add to an endpoint that stands."""
    settings = aws.profile.endpoint
    if settings.variant != "serverless":
        return "nothing beyond the endpoint's own"
    second = settings.serverless_memory_mb / 1024 * load_prices().rates["serverless_gb_second"]
    return f"${second:.6f} for each second of work"


def _round_words(found: load.Round) -> str:
    return (
        f"{found.clients:3} clients  {found.requests_per_s:7.1f} requests/s  p50 {found.p50_ms:6.0f} ms  "
        f"p99 {found.p99_ms:6.0f} ms  {found.errors} errors"
    )


def _expand(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if not (found := sorted(file for file in path.rglob("*") if file.suffix.lower() in PHOTO_SUFFIXES)):
        raise DeployError(f"{path} holds no photos ({', '.join(sorted(PHOTO_SUFFIXES))})")
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DeployError(f"{path} cannot be read: {error.strerror}") from error
