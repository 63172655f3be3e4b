"""`python -m deploy`: the commands by name, and the place where errors become sentences."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.commands import check, data, endpoint, stand, train, watch
from deploy.commands.common import set_up
from deploy.errors import DeployError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def stage(
    context: typer.Context,
    stage: Annotated[str, typer.Option("--stage", "-s", envvar="KENNEL_STAGE", help="dev, staging or prod.")] = "dev",
    profiles: Annotated[Path | None, typer.Option(help="Instead of deploy/profiles.toml.")] = None,
) -> None:
    """From a laptop to AWS and back. Every command is safe to repeat; --plan shows what it would do and cost."""
    set_up(context, stage, profiles)


# In the order in which they are needed.
_BEFORE, _TRAIN, _SERVE, _END = "Before", "Train", "Serve", "Watch the account, and end"
app.command(rich_help_panel=_BEFORE)(check.doctor)
app.command(rich_help_panel=_BEFORE)(watch.advise)
app.add_typer(stand.base_app, name="base", rich_help_panel=_BEFORE)
app.add_typer(data.app, name="data", rich_help_panel=_TRAIN)
app.command(rich_help_panel=_TRAIN)(train.train)
app.command(rich_help_panel=_TRAIN)(train.tune)
app.add_typer(train.ec2_app, name="ec2", rich_help_panel=_TRAIN)
app.command(rich_help_panel=_TRAIN)(watch.status)
app.command(rich_help_panel=_TRAIN)(watch.logs)
app.command(rich_help_panel=_TRAIN)(watch.stop)
app.add_typer(endpoint.app, name="endpoint", rich_help_panel=_SERVE)
app.command(rich_help_panel=_SERVE)(check.invoke)
app.command(rich_help_panel=_SERVE)(check.loadtest)
app.command(rich_help_panel=_END)(check.audit)
app.command(rich_help_panel=_END)(stand.destroy)


def main() -> None:
    """Run a command; an error of ours is a sentence on standard error and exit code 1."""
    try:
        app()
    except DeployError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"deploy: {error}", markup=False, style="red")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
