"""`python -m deploy`: the commands by name, and the place where errors become sentences."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.commands import check, data, stand, train, watch
from deploy.commands.common import set_up
from deploy.errors import DeployError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def stage(
    context: typer.Context,
    stage: Annotated[str, typer.Option("--stage", "-s", envvar="KENNEL_STAGE", help="dev, staging or prod.")] = "dev",
    profiles: Annotated[Path | None, typer.Option(help="Instead of deploy/profiles.toml.")] = None,
) -> None:
    """From a laptop to AWS and back. Every command is safe to repeat; --plan shows and changes nothing."""
    set_up(context, stage, profiles)


app.add_typer(stand.base_app, name="base")
app.add_typer(data.app, name="data")
app.add_typer(train.ec2_app, name="ec2")
app.add_typer(stand.endpoint_app, name="endpoint")
for command in (
    check.doctor,
    watch.advise,
    train.train,
    train.tune,
    watch.status,
    watch.logs,
    watch.stop,
    check.invoke,
    check.loadtest,
    check.audit,
    stand.destroy,
):
    app.command()(command)


def main() -> None:
    """Run a command; an error of ours is a sentence on standard error and exit code 1."""
    try:
        app()
    except DeployError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"deploy: {error}", markup=False, style="red")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
