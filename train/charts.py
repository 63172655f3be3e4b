"""Charts as inline SVG: they scale with the page, and need no program to be drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_WIDTH: Final = 360
_HEIGHT: Final = 220
_LEFT: Final = 44
_BOTTOM: Final = 28
_TOP: Final = 26
_RIGHT: Final = 10
# More cells than this show no numbers, and more classes no names.
_NUMBERED_CLASSES: Final = 15
_NAMED_CLASSES: Final = 40
# report.css has as many: one for each phase of a job.
_PHASE_COLOURS: Final = 11


def line_chart(
    title: str,
    x: Sequence[int],
    series: Mapping[str, Sequence[float]],
    *,
    top: float | None = None,
    marked: int | None = None,
) -> str:
    """Lines over epochs, from zero to `top` or a round number above the highest value; `marked` is an epoch.

    What is not a number, or infinite, is left out.
    """
    highest = max((value for line in series.values() for value in line if math.isfinite(value)), default=0) or 1.0
    step = top / 4 if top else _round_step(highest)
    high = top or step * math.ceil(highest / step - 1e-9)
    marks = [_y_mark(step * number, high) for number in range(round(high / step) + 1)]
    lines = [_line(name, index, x, line, high) for index, (name, line) in enumerate(series.items())]
    head = f'<text class="title" x="4" y="14">{escape(title)}</text>'
    return _svg(_WIDTH, _HEIGHT, head + "".join(marks) + _epoch_marks(x, marked) + "".join(lines))


def _round_step(highest: float) -> float:
    """A distance of 1, 2 or 5 times a power of ten, of which three to five reach from zero to the highest value."""
    raw = max(highest, 1e-9) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))


def _epoch_marks(x: Sequence[int], marked: int | None) -> str:
    step = max(1, round(_round_step(x[-1] - x[0])))
    shown = sorted({x[0], x[-1], *(n for n in x if n % step == 0 and min(n - x[0], x[-1] - n) >= step / 2)})
    y = _HEIGHT - _BOTTOM + 16
    labels = "".join(f'<text x="{_x(n, x)}" y="{y}" text-anchor="middle">{n}</text>' for n in shown)
    name = f'<text x="{_LEFT - 6}" y="{y}" text-anchor="end">epoch</text>'
    if marked is None or marked not in x:
        return labels + name
    place = _x(marked, x)
    line = f'<line class="best" x1="{place}" x2="{place}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
    return line + labels + name


def _x(value: float, x: Sequence[int]) -> float:
    span = max(1, x[-1] - x[0])
    return round(_LEFT + (value - x[0]) / span * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(value: float, high: float) -> float:
    return round(_HEIGHT - _BOTTOM - value / high * (_HEIGHT - _BOTTOM - _TOP), 1)


def _y_mark(value: float, high: float) -> str:
    y = _y(value, high)
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{value:.4g}</text>'
    )


def _line(name: str, index: int, x: Sequence[int], values: Sequence[float], high: float) -> str:
    drawn = [(place, value) for place, value in zip(x, values, strict=True) if math.isfinite(value)]
    points = [(_x(place, x), _y(min(value, high), high)) for place, value in drawn]
    path = " ".join(f"{px},{py}" for px, py in points)
    dots = "".join(f'<circle class="s{index}" cx="{px}" cy="{py}" r="2.5"/>' for px, py in points)
    place = _WIDTH - _RIGHT - index * 78
    key = f'<text class="key s{index}" x="{place}" y="14" text-anchor="end">{escape(name)}</text>'
    return f'<polyline class="s{index}" points="{path}"/>{dots}{key}'


def confusion_chart(names: Sequence[str], counts: npt.NDArray[np.int64]) -> str:
    """Shares of each row as shades; right answers green, wrong ones red."""
    size = len(names)
    cell = max(4, min(56, 560 // size))
    margin = 16 + round(6.4 * min(18, max(map(len, names)))) if size <= _NAMED_CLASSES else 8
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cells = [
        _cell(
            (margin + column * cell, margin + row * cell, cell),
            float(shares[row, column]),
            kind="right" if row == column else "wrong",
            title=f"{names[row]} → {names[column]}: {counts[row, column]}",
            number=str(counts[row, column]) if size <= _NUMBERED_CLASSES else "",
        )
        for row in range(size)
        for column in range(size)
        if counts[row, column]
    ]
    side = margin + size * cell + 8
    frame = f'<rect class="frame" x="{margin}" y="{margin}" width="{size * cell}" height="{size * cell}"></rect>'
    labels = _axis_names(names, margin, cell) if size <= _NAMED_CLASSES else ""
    return f'<div class="scroll">{_svg(side, side, frame + "".join(cells) + labels)}</div>'


def _cell(place: tuple[int, int, int], share: float, *, kind: str, title: str, number: str) -> str:
    x, y, side = place
    rect = (
        f'<rect class="{kind}" x="{x}" y="{y}" width="{side}" height="{side}" opacity="{0.12 + 0.88 * share:.2f}">'
        f"<title>{escape(title)}</title></rect>"
    )
    shade = "light" if share > 0.5 else "dark"
    middle = f'x="{x + side / 2}" y="{y + side / 2 + 4}"'
    return rect + (f'<text class="{shade}" {middle} text-anchor="middle">{number}</text>' if number else "")


def _axis_names(names: Sequence[str], margin: int, cell: int) -> str:
    def short(name: str) -> str:
        return escape(name if len(name) <= 18 else f"{name[:17]}…")

    parts = []
    for index, name in enumerate(names):
        middle = margin + index * cell + cell / 2
        parts.append(f'<text x="{margin - 6}" y="{middle + 4}" text-anchor="end">{short(name)}</text>')
        turn = f"rotate(-60 {middle} {margin - 6})"
        parts.append(f'<text x="{middle}" y="{margin - 6}" transform="{turn}">{short(name)}</text>')
    return "".join(parts)


def reliability_chart(found: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy over confidence, a dot a bin, its area by the number of answers."""
    total = sum(entry["count"] for entry in found)
    marks = [_y_mark(share, 1.0) for share in (0, 0.25, 0.5, 0.75, 1)]
    left, right = _LEFT, _WIDTH - _RIGHT
    diagonal = f'<line class="diagonal" x1="{left}" y1="{_y(0, 1)}" x2="{right}" y2="{_y(1, 1)}"/>'
    dots = [
        f'<circle class="s1" cx="{left + entry["confidence"] * (right - left):.1f}" cy="{_y(entry["accuracy"], 1)}" '
        f'r="{3 + 9 * (entry["count"] / total) ** 0.5:.1f}" opacity="0.75"><title>{entry["count"]} answers: '
        f"{entry['confidence']:.0%} sure, {entry['accuracy']:.0%} right</title></circle>"
        for entry in found
    ]
    axis = f'<text x="{right}" y="{_HEIGHT - 8}" text-anchor="end">probability given</text>'
    title = '<text class="title" x="4" y="14">share that was right</text>'
    content = title + "".join(marks) + diagonal + "".join(dots) + axis
    return f'<div class="charts">{_svg(_WIDTH, _HEIGHT, content)}</div>'


def time_chart(seconds: Mapping[str, float]) -> str:
    """One bar, cut by phase, and a legend with the seconds; phases that took none are left out."""
    seconds = {name: value for name, value in seconds.items() if value >= 0.05}
    total = sum(seconds.values()) or 1.0
    parts = "".join(
        f'<i class="p{index % _PHASE_COLOURS}" style="width:{value / total:.2%}" title="{escape(name)}"></i>'
        for index, (name, value) in enumerate(seconds.items())
    )
    legend = "".join(
        f'<li><i class="p{index % _PHASE_COLOURS}"></i>{escape(name)} <b>{value:.1f} s</b> ({value / total:.0%})</li>'
        for index, (name, value) in enumerate(seconds.items())
    )
    return f'<div class="time">{parts}</div><ul class="legend">{legend}</ul>'


def _svg(width: int, height: int, content: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{content}</svg>'
