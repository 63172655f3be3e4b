"""What every command shares: the profile at hand, the screen, and the moment between plan and act."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.aws import Aws
from deploy.errors import DeployError
from deploy.plan import Plan, Step
from deploy.profile import PROFILES, Profile

Context = typer.Context
PlanOnly = Annotated[bool, typer.Option("--plan", help="Show what would be done and what it costs; change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

# What requests cost that only read: AWS bills none of them, or less than a thousandth of a cent.
NOTHING = "nothing"

screen = Console(highlight=False, soft_wrap=True)


def set_up(context: typer.Context, stage: str, profiles: Path | None) -> None:
    """Read the profile; nothing of AWS is touched yet."""
    context.obj = Aws(Profile.load(stage, profiles or PROFILES))


def aws_of(context: typer.Context) -> Aws:
    if not isinstance(context.obj, Aws):
        raise TypeError("the command line was entered without its callback")
    return context.obj


def proceed(plan: Plan, *, plan_only: bool, ask: bool = False, yes: bool = True) -> bool:
    """Show the plan; whether to carry it out."""
    plan.show(screen, requests=plan_only)
    if plan_only:
        screen.print("[dim]--plan: nothing was changed[/]")
        return False
    if ask and not yes and not typer.confirm("Go on?"):
        raise DeployError("nothing was changed")
    return True


def only_reads(what: str, *, plan_only: bool) -> bool:
    """Whether --plan was asked of a command that changes nothing anyway; its plan is shown then."""
    if plan_only:
        proceed(Plan(title="this command only reads", steps=(Step("read", what),), cost=NOTHING), plan_only=True)
    return plan_only


def say(words: str) -> None:
    screen.print(words, markup=False)
