"""A benchmark's rows: a figure, ours, the usual way's, how many times better, and what it must reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

HEAD: Final = "| figure | ours | usual way | times better | must be | |\n|---|---|---|---|---|---|"


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to measure: seconds for each load of a server, repetitions where a median is taken."""

    seconds: float = 20
    repeat: int = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line; `essential` ones are shown in the README too."""

    figure: str
    ours: str
    usual: str = ""
    ratio: str = ""
    target: str = ""
    verdict: str = ""
    essential: bool = False

    def line(self) -> str:
        figure = f"**{self.figure}**" if self.essential else self.figure
        return f"| {figure} | {self.ours} | {self.usual} | {self.ratio} | {self.target} | {self.verdict} |"


def _show(row: Row) -> None:
    print(row.line(), flush=True)


class Table:
    """Takes figures as they are measured, and hands each on at once: what comes later may fail."""

    def __init__(self, record: Callable[[Row], None] = _show) -> None:
        self._record = record

    def add(
        self,
        figure: str,
        *,
        ours: float,
        unit: str,
        other: float | None = None,
        target: float | None = None,
        limit: float | None = None,
        smaller: bool = False,
        essential: bool = False,
    ) -> None:
        """`smaller`: less is better, and the ratio is turned round. `target` is the least ratio, `limit` the most of
        ours, in `unit`.
        """
        ratio = None if other is None else other / ours if smaller else ours / other
        wanted, reached = "", []
        if target is not None and ratio is not None:
            wanted, reached = f"{target:g} times", [ratio >= target]
        if limit is not None:
            wanted, reached = f"at most {_amount(limit, unit)}", [ours <= limit]
        self._record(
            Row(
                figure=figure,
                ours=_amount(ours, unit),
                usual="" if other is None else _amount(other, unit),
                ratio="" if ratio is None else f"{ratio:.2f}",
                target=wanted,
                verdict="" if not reached else "reached" if all(reached) else "missed",
                essential=essential,
            )
        )


def _amount(value: float, unit: str) -> str:
    digits = f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{digits} {unit}".rstrip()
