"""The report of a run: one page that a person wants to look at, with everything in it, and its figures as JSON."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from container.errors import PhotoError
from container.heatmap import activation_map, overlay
from container.preprocessing import Float32Array, Preprocessing, centre_square, normalise, open_photo
from train.charts import confusion_chart, line_chart, reliability_chart, time_chart
from train.engine import session
from train.figures import Answer, Figures

_PHOTO_PIXELS: Final = 176
_STYLE: Final = Path(__file__).with_name("report.css")


def write_report(folder: Path, figures: Figures, *, network: bytes, head: Float32Array, spec: Preprocessing) -> None:
    """Write report.html, report.json and TensorBoard's events. `head`: the last layer (classes, channels)."""
    (folder / "report.json").write_text(json.dumps(figures.to_json(), indent=2), encoding="utf-8")
    camera = Camera(network, head, spec)
    # A photo's name may be bytes of another encoding, which Python holds as what UTF-8 cannot say.
    (folder / "report.html").write_text(page(figures, camera), encoding="utf-8", errors="replace")
    _write_events(folder / "tensorboard", figures)


class Camera:
    """Shows photos as the network saw them, and where it looked."""

    def __init__(self, network: bytes, head: Float32Array, spec: Preprocessing) -> None:
        self._session = session(network)
        self._head = head
        self._spec = spec

    def thumbnail(self, path: Path) -> str:
        square = self._square(path)
        return "" if square is None else _data_uri(square)

    def heat_map(self, path: Path, label: int) -> str:
        square = self._square(path)
        if square is None:
            return ""
        (maps,) = self._session.run(["maps"], {"photos": normalise(square, self._spec)[None]})
        return _data_uri(overlay(square, activation_map(maps[0], self._head[label])))

    def _square(self, path: Path) -> Image.Image | None:
        try:
            return centre_square(open_photo(path.read_bytes(), min_side=self._spec.resize_size), self._spec)
        except (OSError, PhotoError):
            return None  # It lies on another host.


def _data_uri(photo: Image.Image) -> str:
    enlarged = photo.resize((_PHOTO_PIXELS, _PHOTO_PIXELS), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    enlarged.save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def page(figures: Figures, camera: Camera) -> str:
    """The whole page, without a reference to anything outside it."""
    title = f"{figures.config['architecture']}, {len(figures.class_names)} classes"
    kept = f"epoch {figures.best} of {figures.epochs[-1]['number']}" if figures.best else "the head alone"
    lead = f"strategy {figures.run['strategy']}; the weights are those of {kept}"
    sections = [
        _headline(figures),
        _section("Training", _curves(figures)),
        _section("Confusion", _confusion(figures)),
        _section("Most confused", _pairs(figures, camera)),
        _section("Surest mistakes", _mistakes(figures, camera)),
        _section("Can its probabilities be trusted?", _calibration(figures)),
        _section("Classes", _classes(figures)),
        _section("Where time went", _time(figures)),
        _section("Configuration", _configuration(figures)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE.read_text(encoding='utf-8')}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><p>{escape(lead)}</p></header><main>{''.join(sections)}</main></body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _headline(figures: Figures) -> str:
    metrics = figures.metrics
    tiles = [
        ("validation accuracy", _percent(metrics.get("validation:accuracy"))),
        ("test accuracy", _percent(metrics.get("test:accuracy"))),
        ("calibration error", _percent(metrics.get("calibration:ece_after"))),
        ("served network", figures.served),
        ("accuracy in int8", _percent(metrics.get("int8:accuracy"))),
        ("accuracy in float32", _percent(metrics.get("int8:accuracy_float32"))),
        ("answers that int8 and float32 share", _percent(metrics.get("int8:agreement"))),
        ("photos to validate", str(int(figures.confusion.sum()))),
    ]
    cells = "".join(f"<div class=tile><b>{value}</b><span>{name}</span></div>" for name, value in tiles if value)
    return f"<section class=tiles>{cells}</section>"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _curves(figures: Figures) -> str:
    epochs = [entry for entry in figures.epochs if entry["number"] > 0] or figures.epochs
    numbers = [entry["number"] for entry in epochs]

    def series(name: str) -> dict[str, list[float]]:
        return {kind: [entry[f"{kind}_{name}"] for entry in epochs] for kind in ("train", "validation")}

    # Epochs that read no photos have no speed.
    best, speed = figures.best, {"images/s": [entry["images_per_second"] or math.nan for entry in epochs]}
    charts = [
        line_chart("loss", numbers, series("loss"), marked=best),
        line_chart("accuracy", numbers, series("accuracy"), top=1.0, marked=best),
        line_chart("throughput", numbers, speed),
    ]
    return f"<div class=charts>{''.join(charts)}</div>"


def _confusion(figures: Figures) -> str:
    note = "<p>Rows are what a photo shows, columns what was answered; darker is more often.</p>"
    return note + confusion_chart(figures.class_names, figures.confusion)


def _pairs(figures: Figures, camera: Camera) -> str:
    if not figures.pairs:
        return "<p>No photo of validation was taken for another class.</p>"
    rows = []
    for truth, label, answers in figures.pairs:
        names = f"<b>{escape(figures.class_names[truth])}</b> taken for <b>{escape(figures.class_names[label])}</b>,"
        shown = "".join(_picture(camera.thumbnail(answer.path), answer.path.name) for answer in answers[:4])
        times = "once" if len(answers) == 1 else f"{len(answers)} times"
        rows.append(f"<div class=pair><p>{names} {times}</p><div class=photos>{shown}</div></div>")
    return f"<div class=pairs>{''.join(rows)}</div>"


def _mistakes(figures: Figures, camera: Camera) -> str:
    if not figures.mistakes:
        return "<p>There are none on validation.</p>"
    note = "<p>Beside each photo, where the network saw the class that it named.</p>"
    cards = "".join(_mistake(answer, figures.class_names, camera) for answer in figures.mistakes)
    return f"{note}<div class=mistakes>{cards}</div>"


def _mistake(answer: Answer, names: Sequence[str], camera: Camera) -> str:
    pictures = _picture(camera.thumbnail(answer.path), answer.path.name) + _picture(
        camera.heat_map(answer.path, answer.label), "activation"
    )
    said = f"<b>{escape(names[answer.label])}</b> {answer.probability:.0%}"
    return (
        f"<figure><div class=photos>{pictures}</div><figcaption>{said}, is {escape(names[answer.truth])}"
        f"<small>{escape(answer.path.name)}</small></figcaption></figure>"
    )


def _picture(uri: str, text: str) -> str:
    return f'<img src="{uri}" alt="{escape(text)}" loading="lazy">' if uri else ""


def _calibration(figures: Figures) -> str:
    before, after = (figures.metrics.get(f"calibration:ece_{when}") for when in ("before", "after"))
    text = (
        f"<p>Expected calibration error on validation: {_percent(before)} as trained, {_percent(after)} with the "
        f"temperature that is served ({figures.temperature:.3g}). On the diagonal, answers given with 80 % are right "
        "in 80 % of cases; larger dots are more answers.</p>"
    )
    if figures.threshold is not None:
        text += (
            f"<p>An answer of at least {_percent(figures.threshold)} is served as confident: "
            f"{_percent(figures.coverage)} of the validation photos have one, and "
            f"{_percent(figures.confident_accuracy)} of those are right.</p>"
        )
    return text + reliability_chart(figures.reliability)


def _time(figures: Figures) -> str:
    training = sum(entry["seconds"] for entry in figures.epochs)
    waiting = sum(entry["seconds"] * entry["waiting"] for entry in figures.epochs)
    note = f"<p>{waiting / training:.1%} of the epochs' own time was spent waiting for photos.</p>" if waiting else ""
    return time_chart(figures.seconds) + note


def _classes(figures: Figures) -> str:
    rows = sorted(figures.per_class(), key=lambda row: (row["recall"] is None, row["recall"] or 0.0))
    cells = "".join(
        f"<tr><td>{escape(row['class'])}</td><td>{row['photos']}</td><td>{_bar(row['precision'])}</td>"
        f"<td>{_bar(row['recall'])}</td></tr>"
        for row in rows
    )
    head = "<tr><th>class</th><th>photos</th><th>precision</th><th>recall</th></tr>"
    return f"<div class=scroll><table>{head}{cells}</table></div>"


def _bar(share: float | None) -> str:
    if share is None:
        return "–"
    return f'<span class=bar><i style="width:{share:.0%}"></i></span> {share:.0%}'


def _configuration(figures: Figures) -> str:
    def table(values: Mapping[str, Any]) -> str:
        rows = (f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in values.items())
        return f"<table>{''.join(rows)}</table>"

    more = f"<details><summary>{len(figures.config)} hyperparameters</summary>{table(figures.config)}</details>"
    return table(figures.run) + more


def _write_events(folder: Path, figures: Figures) -> None:
    """TensorBoard's event files, each epoch's figures by the names of SageMaker's metrics."""
    with SummaryWriter(str(folder)) as writer:
        for entry in figures.epochs:
            _write_epoch(writer, entry)


def _write_epoch(writer: SummaryWriter, entry: dict[str, Any]) -> None:
    for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "images_per_second"):
        if name == "images_per_second" and not entry[name]:
            continue  # No photos were read.
        tag = name.replace("_", "/", 1) if name != "images_per_second" else "train/images_per_second"
        writer.add_scalar(tag, entry[name], entry["number"])
