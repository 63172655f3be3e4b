"""Runs one benchmark and keeps its part of the page."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks import machine, page
from tests.benchmarks.table import Effort, Row, Table

Benchmark = Callable[[Table, Effort], None]


def measure(name: str, benchmarks: Mapping[str, tuple[str, Benchmark]], effort: Effort, path: Path) -> bool:
    """Run one benchmark and keep its part of the page up to date; returns whether it ended well."""
    title, run = benchmarks[name]
    where = f"* {machine.machine()}\n* {machine.versions()}"
    begun, load = time.monotonic(), machine.load()
    part = page.Part(name, title, footer=f"* {_now()}: begun and not ended yet.")
    print(f"# {title}", flush=True)

    def record(row: Row) -> None:
        print(row.line(), flush=True)
        part.rows.append(row)
        page.write(path, part, list(benchmarks))

    page.write(path, part, list(benchmarks))
    error = ""
    try:
        run(Table(record), effort)
    except Exception as exc:  # The next benchmark is worth running all the same.
        error = f". **Stopped by {type(exc).__name__}: {exc}**"
        print(f"{name}{error}", file=sys.stderr, flush=True)
    took, loads = (time.monotonic() - begun) / 60, f"{load:.2f} before, {machine.load():.2f} after"
    part.footer = f"* {_now()}, {took:.1f} minutes, load average {loads}, {machine.photos()}{error}\n{where}"
    page.write(path, part, list(benchmarks))
    return not error


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
