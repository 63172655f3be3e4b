"""`data push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from deploy import datasets, doctor, photo_doctor
from deploy.aws import Aws
from deploy.commands.common import NOTHING, Context, PlanOnly, aws_of, proceed, say, screen
from deploy.errors import DeployError
from deploy.photo_doctor import PhotoDoctor
from deploy.plan import Plan, Step
from deploy.pricing import load_prices

app = typer.Typer(no_args_is_help=True, help="`data push`: photos to the bucket, verified and resumable.")


@app.callback()
def group() -> None:
    """Data sets in the bucket."""


@app.command()
def push(
    context: Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of class folders, or of train/ valid/ test/.")],
    name: Annotated[str, typer.Option(help="What to call the data set; by default as its folder.")] = "",
    no_doctor: Annotated[bool, typer.Option("--no-doctor", help="Do not look at the photos first.")] = False,
    plan: PlanOnly = False,
) -> None:
    """Upload photos, verified and resumable: the doctor looks first, and what is there already is not sent again."""
    name = dataset_name(name or folder.resolve().name)
    push_folder(aws_of(context), folder, name, plan_only=plan, examine=not no_doctor)


def push_folder(aws: Aws, folder: Path, name: str, *, plan_only: bool, examine: bool = True) -> None:
    """Push as data set NAME: examined, compared, sent, verified."""
    doctor.require_credentials(aws)
    datasets.require_private_bucket(aws)
    prefix = f"data/{name}/"
    with screen.status("reading and comparing"):
        files = datasets.list_local(folder, prefix=prefix)
        difference = datasets.compare(aws, files, prefix=prefix)
    examine = examine and bool(difference.missing)
    looker = photo_doctor.find(aws.profile.repository) if examine else None
    notes = (_NO_DOCTOR,) if examine and looker is None else ()
    if proceed(_plan(difference, f"s3://{aws.bucket}/{prefix}", looker, notes), plan_only=plan_only):
        if looker:
            looker.examine(folder, say=say)
        _send(aws, difference)
        datasets.verify(aws, files, prefix=prefix)
        say(f"{len(files)} files are in s3://{aws.bucket}/{prefix} as they are here")


def _send(aws: Aws, difference: datasets.Difference) -> None:
    columns = (TextColumn("uploading"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen) as bar:
        task = bar.add_task("", total=difference.bytes_to_send)
        datasets.push(aws, difference.missing, progress=lambda sent: bar.advance(task, sent))


def dataset_name(text: str) -> str:
    if not text or not all(letter.isalnum() or letter in "-_." for letter in text) or text.startswith("."):
        raise DeployError(f"'{text}' is no name for a data set: letters, digits, '-', '_' and '.'")
    return text


_NO_DOCTOR = "nobody looks at the photos first: there is no image with the doctor here (`make image` makes one)"


def _plan(difference: datasets.Difference, target: str, looker: PhotoDoctor | None, notes: tuple[str, ...]) -> Plan:
    size_gb = difference.bytes_to_send / 2**30
    steps = [Step("keep", f"{difference.same} files that are there already")] if difference.same else []
    if looker:
        steps.append(Step("run", f"the doctor over the photos, here, in image {looker.image}"))
    if difference.missing:
        steps.append(Step("create", f"{len(difference.missing)} files, {size_gb:.2f} GB"))
    if difference.stray:
        names = ", ".join(difference.stray[:3])
        notes += (f"{len(difference.stray)} files lie there that are not here, and training will see them: {names}",)
    rates = load_prices().rates
    once, month = len(difference.missing) / 1000 * rates["s3_put_thousand"], size_gb * rates["s3_gb_month"]
    cost = f"${month:.2f} a month, and ${once:.2f} once for the requests" if difference.missing else NOTHING
    return Plan(title=f"data to {target}", steps=tuple(steps), cost=cost, notes=(*notes, load_prices().caveat))
