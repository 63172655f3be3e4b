"""`advise`, and the jobs' `status`, `logs` and `stop`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from deploy import jobs
from deploy.commands.common import Context, PlanOnly, aws_of, only_reads, proceed, say, screen
from deploy.errors import DeployError
from deploy.plan import Plan, Step
from deploy.pricing import advice, load_prices

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Show the log until the job has ended.")]


def advise(
    context: Context,
    photos: Annotated[int, typer.Option(help="Training photos.")] = 6680,
    epochs: Annotated[int, typer.Option(help="Passes over them.")] = 10,
    spot: Annotated[bool, typer.Option(help="With spot's usual price.")] = False,
    plan: PlanOnly = False,
) -> None:
    """Which machine to train on: time and cost of each, and where the figures come from."""
    if only_reads("the table of prices and speeds, deploy/prices.toml", plan_only=plan):
        return
    table = Table("machine", "hours", "dollars", "images/s", "why", box=None, pad_edge=False)
    estimates = advice(photos=photos, epochs=epochs, spot=spot)
    for estimate in estimates:
        machine = estimate.machine
        cells = (
            f"ml.{machine.name}",
            f"{estimate.hours:.1f}",
            f"{estimate.dollars:.2f}",
            f"{machine.train_images_per_s:g}",
        )
        table.add_row(*cells, machine.basis)
    screen.print(table)
    fastest = min(estimates, key=lambda estimate: estimate.hours)
    say(f"cheapest: ml.{estimates[0].machine.name}, {estimates[0].words()}")
    say(f"fastest: ml.{fastest.machine.name}, {fastest.words()}")
    say(f"{load_prices().caveat}; whole fine-tuning of ResNet-50; a head alone needs one pass")


def status(
    context: Context,
    job: Annotated[str, typer.Argument(help="A training, tuning or EC2 job.")],
    plan: PlanOnly = False,
) -> None:
    """A job's state, its best metric so far, and its artifact."""
    if only_reads(f"what SageMaker, EC2, CloudWatch's logs and the bucket know of {job}", plan_only=plan):
        return
    aws = aws_of(context)
    found = jobs.status(aws, job)
    say(f"{found.kind} {found.name}: {found.state} {found.detail}".rstrip())
    if found.seconds:
        say(f"  billed {found.seconds} s")
    if found.warm:
        say(f"  its instances wait for the next job, and are billed: `stop {job}` lets them go")
    for name, value in sorted(jobs.best_metric(aws, jobs.log_source(aws, found)).items()):
        say(f"  best {name} {value:.4f}")
    for label, words in (("failure", found.failure), ("artifact", found.artifact)):
        if words:
            say(f"  {label}: {words}")
    if found.failed:
        raise typer.Exit(1)


def logs(
    context: Context,
    job: Annotated[str, typer.Argument(help="A training, tuning or EC2 job.")],
    follow: Follow = False,
    plan: PlanOnly = False,
) -> None:
    """A job's log, of all its hosts."""
    if only_reads(f"the log of {job} in CloudWatch", plan_only=plan):
        return
    aws = aws_of(context)
    found = jobs.status(aws, job)
    ended = (lambda: jobs.status(aws, job).ended) if follow else None
    for stream, line in jobs.lines(aws, jobs.log_source(aws, found), follow_until=ended):
        say(f"{stream.rsplit('/', 1)[-1].partition('-1')[0]}  {line}" if found.kind == "tuning" else line)


def stop(
    context: Context, job: Annotated[str, typer.Argument(help="A job that runs.")], plan: PlanOnly = False
) -> None:
    """End a job; on SageMaker it has two minutes to save its model."""
    aws = aws_of(context)
    found = jobs.status(aws, job)
    if found.ended and not found.warm:
        raise DeployError(f"{found.kind} {job} is {found.state} already")
    what = f"the warm instances of {job}" if found.warm else f"{found.kind} {job}, which is {found.state}"
    cost = "nothing, and its instances are billed no longer"
    if proceed(Plan(title=f"stop {job}", steps=(Step("delete", what),), cost=cost), plan_only=plan):
        jobs.stop(aws, found)
