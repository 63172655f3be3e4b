"""`doctor`, `audit`, `invoke` and `loadtest`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from deploy import audit as auditing
from deploy import doctor as examination
from deploy import endpoint
from deploy import loadtest as load
from deploy.aws import Aws
from deploy.commands.common import Context, PlanOnly, aws_of, proceed, say, screen
from deploy.endpoint import SAFETY_FACTOR
from deploy.errors import DeployError
from deploy.plan import Plan, Step
from deploy.pricing import load_prices

_PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


def doctor(context: Context) -> None:
    """Whether this laptop and account are ready; what is not, and what to do."""
    findings = examination.examine(aws_of(context))
    for finding in findings:
        screen.print(f"[{'green' if finding.fine else 'red'}]{'ok' if finding.fine else 'no':3}[/]", end="")
        say(f"{finding.what}: {finding.words}")
    if not all(finding.fine for finding in findings):
        raise typer.Exit(1)


def audit(context: Context) -> None:
    """What is too open or left over: FullAccess, wildcards, unused roles, roles of gone functions, public buckets."""
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
    step = Step("run", f"{len(read)} photos to endpoint {aws.profile.prefix}", "nothing beyond the endpoint's own")
    if plan:
        proceed(Plan("invoke", (step,)), plan_only=True)
        return
    for photo, data in read:
        answer = json.loads(endpoint.invoke(aws, data, model=model))
        say(json.dumps({"photo": str(photo), **(answer if isinstance(answer, dict) else {"answer": answer})}))


def loadtest(
    context: Context,
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO…", help="Photos, or folders of them.")],
    url: Annotated[str, typer.Option(help="A container instead of the endpoint, e.g. http://127.0.0.1:8080.")] = "",
    latency_ms: Annotated[float, typer.Option(help="The bound that 99 of 100 answers keep.")] = 500,
    seconds: Annotated[float, typer.Option(help="Length of each round.")] = 20,
    peak_per_s: Annotated[float, typer.Option("--peak", help="Your traffic's peak, requests a second.")] = 10,
    plan: PlanOnly = False,
) -> None:
    """How many requests a second it holds, and what follows: scaling target, instances, concurrency, cost."""
    aws = aws_of(context)
    bodies = [_read(path) for photo in photos for path in _expand(photo)]
    target = url or f"endpoint {aws.profile.prefix}"
    step = Step("run", f"rounds of {seconds:g} s against {target} until p99 passes {latency_ms:g} ms", _load_cost(url))
    if not proceed(Plan("loadtest", (step,)), plan_only=plan):
        return
    with load.to_container(url) if url else load.to_endpoint(aws) as send:
        best = load.run(send, bodies, bound_ms=latency_ms, seconds=seconds, say=lambda found: say(_round_words(found)))
    say(f"holds {best.requests_per_s:.1f} requests/s with {best.clients} clients at p99 {best.p99_ms:.0f} ms")
    _show_sizing(aws, best, peak_per_s)


def _show_sizing(aws: Aws, best: load.Round, peak_per_s: float) -> None:
    profile = aws.profile.endpoint
    found = load.size(best, peak_per_s=peak_per_s, instance_type=profile.instance_type)
    say(f"what follows for a peak of {peak_per_s:g} requests/s, if {profile.instance_type} is as fast as this:")
    words = {
        "endpoint.scaling_target": f"{found.scaling_target}  ({best.requests_per_s:.1f} x {SAFETY_FACTOR} x 60)",
        "instances at the peak": str(found.instances),
        "function.provisioned_concurrency": f"{found.provisioned_concurrency}  (calls at p50 that overlap)",
        "function.reserved_concurrency": f"{found.reserved_concurrency}  (twice the peak at p99)",
    }
    for name, value in words.items():
        say(f"  {name} = {value}")
    if found.dollars_a_month is not None:
        say(f"  at the peak all month: ${found.dollars_a_month:.0f}; {load_prices().caveat}")


def _round_words(found: load.Round) -> str:
    return (
        f"{found.clients:3} clients  {found.requests_per_s:7.1f} requests/s  p50 {found.p50_ms:6.0f} ms  "
        f"p99 {found.p99_ms:6.0f} ms  {found.errors} errors"
    )


def _load_cost(url: str) -> str:
    return "" if url else "what scaling adds while it runs"


def _expand(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if not (found := sorted(file for file in path.rglob("*") if file.suffix.lower() in _PHOTOS)):
        raise DeployError(f"{path} holds no photos ({', '.join(_PHOTOS)})")
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DeployError(f"{path} cannot be read: {error.strerror}") from error
