"""`make demo`: train on real images, serve the result, and ask it about images that it has not seen.

photos -> train (in the container) -> demo/opt-ml/model -> serve (the same image) -> answers
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from httpx import codes
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy import demo_data
from deploy.programs import ROOT, Programs, container_or_host, free_port, wait_until_ready

FOLDER = ROOT / "demo"
EPOCHS = 12
# A mirrored digit is none.
DIGITS = {"image-size": 32, "flip": "false"}
PHOTOS = {"image-size": 128}
# Of the digits. Of other people's photos nothing is known.
LEAST_ACCURACY = 0.95
ROWS_SHOWN = 20


@dataclass(frozen=True)
class Answer:
    truth: str
    label: str
    probability: float


def main() -> None:
    arguments = parse_arguments()
    base, held_out = prepare(arguments.data)
    programs = container_or_host(engine=arguments.engine != "none")
    train(programs, base, DIGITS if arguments.data is None else PHOTOS)
    answers = serve_and_ask(programs, base, held_out)
    show(answers, base)
    judge(answers, least=LEAST_ACCURACY if arguments.data is None else 0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.demo", description=__doc__)
    parser.add_argument(
        "--data", type=Path, help="a folder with one folder of photos per class; default: handwritten digits"
    )
    parser.add_argument("--engine", choices=["auto", "none"], default="auto", help="none: run without a container")
    return parser.parse_args()


def prepare(data: Path | None) -> tuple[Path, Path]:
    """Lay out /opt/ml below demo/ and return it with the folder of held-out photos."""
    if data and data.resolve().is_relative_to(FOLDER):
        raise SystemExit(f"{data} is in {FOLDER}, which each demo empties; move the photos elsewhere")
    base, held_out = FOLDER / "opt-ml", FOLDER / "held-out"
    with tempfile.TemporaryDirectory() as scratch:
        if data is None:
            demo_data.write_digits(Path(scratch))
        classes = demo_data.photos_by_class(data or Path(scratch))
        shutil.rmtree(FOLDER, ignore_errors=True)
        for folder in ("input/data", "model", "output"):
            (base / folder).mkdir(parents=True)
        demo_data.hold_out(classes, training=base / "input/data/training", held_out=held_out)
    print(f"{sum(map(len, classes.values()))} photos of {len(classes)} classes are in {FOLDER}", flush=True)
    return base, held_out


def train(programs: Programs, base: Path, settings: Mapping[str, object]) -> None:
    """Train a ResNet-18 from scratch; the bar follows the lines that training prints, one an epoch."""
    hyperparameters = {"architecture": "resnet18", "pretrained": "false", "epochs": EPOCHS, **settings}
    flags = [word for name, value in hyperparameters.items() for word in (f"--{name}", str(value))]
    with programs.train(base, flags) as training:
        for line in with_progress(training, f"training {programs.where}"):
            print(line, flush=True)
    if training.returncode != 0:
        raise SystemExit(f"training failed: {reason(base / 'output/failure', training.returncode)}")


def reason(failure: Path, code: int) -> str:
    """What training wrote of its failure; what its exit code says where it could not write."""
    if failure.is_file():
        return failure.read_text(encoding="utf-8")
    killed = "it was killed, most often for lack of memory"
    known = {125: "the container could not be started", 137: killed, -9: killed}
    return f"it ended with {code} and left no {failure}; {known.get(code, 'the lines above may say why')}"


def with_progress(training: subprocess.Popen[str], title: str) -> Iterator[str]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("epoch {task.completed} of {task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=EPOCHS)
        for line in training.stdout or ():
            if match := re.match(r"epoch (\d+)/(\d+)", line):
                progress.update(task, completed=int(match[1]), total=int(match[2]))
            yield line.rstrip("\n")


def serve_and_ask(programs: Programs, base: Path, held_out: Path) -> list[Answer]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    print(f"serving {programs.where} on {url}", flush=True)
    with programs.serve(base, port), httpx.Client(base_url=url, timeout=60) as client:
        wait_until_ready(url, timeout_s=120)
        class_names = client.get("/info").raise_for_status().json()["class_names"]
        asked = (ask(client, photo, class_names) for photo in sorted(held_out.glob("*/*")))
        return [answer for answer in asked if answer]


def ask(client: httpx.Client, photo: Path, class_names: Sequence[str]) -> Answer | None:
    """None, and a line that says why, for a photo that the server cannot read."""
    response = client.post(
        "/invocations", content=photo.read_bytes(), headers={"Content-Type": "application/octet-stream"}
    )
    if response.status_code in (codes.BAD_REQUEST, codes.UNPROCESSABLE_ENTITY):
        print(f"{photo} is left out: {response.json()['error']['message']}", flush=True)
        return None
    prediction = response.raise_for_status().json()
    truth = shown_name(photo.parent.name, class_names)
    return Answer(truth=truth, label=prediction["label"], probability=prediction["probability"])


def shown_name(folder: str, class_names: Sequence[str]) -> str:
    """The class of a folder as training names it: `001.Affenpinscher` is shown as `Affenpinscher`."""
    return folder if folder in class_names else folder.partition(".")[2]


def show(answers: Sequence[Answer], base: Path) -> None:
    shown = answers[:: max(1, len(answers) // ROWS_SHOWN)][:ROWS_SHOWN]
    title = f"{len(shown)} of {len(answers)} photos that it had not seen"
    table = Table("photo of", "prediction", "probability", title=title)
    for answer in shown:
        style = None if answer.truth == answer.label else "red"
        table.add_row(answer.truth, answer.label, f"{answer.probability:.3f}", style=style)
    console = Console()
    console.print(table)
    console.print(
        f"The artifact is in {base / 'model'}. Next: make demo DATA=<a folder with one folder of photos per class>",
        soft_wrap=True,
    )


def judge(answers: Sequence[Answer], *, least: float) -> None:
    """Print the accuracy; raises SystemExit where it is below `least`, or there is none."""
    if not answers:
        raise SystemExit("none of the held-out photos can be read")
    accuracy = sum(answer.truth == answer.label for answer in answers) / len(answers)
    print(f"accuracy {accuracy:.1%}", flush=True)
    if accuracy < least:
        raise SystemExit(f"accuracy is {accuracy:.1%}, below {least:.0%}: training or serving is broken here")


if __name__ == "__main__":
    main()
