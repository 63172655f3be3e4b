"""`data push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from deploy import datasets, doctor
from deploy.aws import Aws
from deploy.commands.common import Context, PlanOnly, aws_of, proceed, say, screen
from deploy.errors import DeployError
from deploy.plan import Plan, Step
from deploy.pricing import load_prices

app = typer.Typer(no_args_is_help=True, help="Data sets in the bucket.")


@app.callback()
def group() -> None:
    """Data sets in the bucket."""


@app.command()
def push(
    context: Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of class folders, or of train/ valid/ test/.")],
    name: Annotated[str, typer.Option(help="What to call the data set; by default as its folder.")] = "",
    plan: PlanOnly = False,
) -> None:
    """Upload photos, verified and resumable: what is there already is not sent again."""
    push_folder(aws_of(context), folder, dataset_name(name or folder.resolve().name), plan_only=plan)


def push_folder(aws: Aws, folder: Path, name: str, *, plan_only: bool) -> dict[str, str]:
    """Push as data set NAME; the channels that it has then."""
    doctor.require_credentials(aws)
    datasets.require_private_bucket(aws)
    prefix = f"data/{name}/"
    with screen.status("reading and comparing"):
        files = datasets.list_local(folder, prefix=prefix)
        difference = datasets.compare(aws, files, prefix=prefix)
    if proceed(_plan(difference, f"s3://{aws.bucket}/{prefix}"), plan_only=plan_only):
        _send(aws, difference)
        datasets.verify(aws, files, prefix=prefix)
        say(f"{len(files)} files are in s3://{aws.bucket}/{prefix} as they are here")
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return datasets.channels_of(folders, f"s3://{aws.bucket}/{prefix}")


def _send(aws: Aws, difference: datasets.Difference) -> None:
    columns = (TextColumn("uploading"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen) as bar:
        task = bar.add_task("", total=difference.bytes_to_send)
        datasets.push(aws, difference.missing, progress=lambda sent: bar.advance(task, sent))


def dataset_name(text: str) -> str:
    if not text or not all(letter.isalnum() or letter in "-_." for letter in text) or text.startswith("."):
        raise DeployError(f"'{text}' is no name for a data set: letters, digits, '-', '_' and '.'")
    return text


def _plan(difference: datasets.Difference, target: str) -> Plan:
    size_gb = difference.bytes_to_send / 2**30
    month = size_gb * load_prices().rates["s3_gb_month"]
    steps = [Step("keep", f"{difference.same} files that are there already")] if difference.same else []
    if difference.missing:
        what = f"{len(difference.missing)} files, {size_gb:.2f} GB"
        steps.append(Step("create", what, f"${month:.2f} a month"))
    notes = [load_prices().caveat]
    if difference.stray:
        names = ", ".join(difference.stray[:3])
        notes.append(f"{len(difference.stray)} files lie there that are not here, and training will see them: {names}")
    return Plan(f"data to {target}", tuple(steps), tuple(notes))
