"""What a command is about to do, shown before it does it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape

_COLOURS = {"create": "green", "update": "yellow", "delete": "red", "keep": "dim", "run": "cyan", "read": "dim"}


@dataclass(frozen=True)
class Step:
    """One thing that is done: `verb` is create, update, delete, keep, run or read."""

    verb: str
    what: str
    request: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Steps in their order, what all of them cost in words, and what the reader should know about them."""

    title: str
    steps: tuple[Step, ...]
    cost: str
    notes: tuple[str, ...] = ()

    def show(self, console: Console, *, requests: bool = False) -> None:
        """Print it; `requests` prints the full requests below."""
        console.print(f"[italic]{escape(self.title)}[/]")
        for step in self.steps:
            console.print(f"[{_COLOURS[step.verb]}]{step.verb:6}[/]  {escape(step.what)}")
        console.print(f"[bold]{'cost':6}[/]  {escape(self.cost)}")
        for note in self.notes:
            console.print(f"[dim]·[/] {escape(note)}")
        for step in self.steps if requests else ():
            if step.request is not None:
                console.print_json(json.dumps(step.request, default=str))
