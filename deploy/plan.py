"""What a command is about to do, shown before it does it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_COLOURS = {"create": "green", "update": "yellow", "delete": "red", "keep": "dim", "run": "cyan"}


@dataclass(frozen=True)
class Step:
    """One thing that is done: `verb` is create, update, delete, keep or run; `cost` in words."""

    verb: str
    what: str
    cost: str = ""
    request: dict[str, Any] | None = None


@dataclass(frozen=True)
class Plan:
    """Steps in their order, and what the reader should know about them."""

    title: str
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        return any(step.verb != "keep" for step in self.steps)

    def show(self, console: Console, *, requests: bool = False) -> None:
        """Print it; `requests` prints the full requests below the table."""
        table = Table("", "what", "cost", title=self.title, title_justify="left", box=None, pad_edge=False)
        for step in self.steps:
            table.add_row(f"[{_COLOURS[step.verb]}]{step.verb}[/]", escape(step.what), escape(step.cost))
        console.print(table)
        for note in self.notes:
            console.print(f"[dim]·[/] {escape(note)}")
        for step in self.steps if requests else ():
            if step.request is not None:
                console.print_json(json.dumps(step.request, default=str))
