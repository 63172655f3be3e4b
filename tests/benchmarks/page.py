"""docs/benchmarks.md, one part for each benchmark between markers, and the README's excerpt of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.benchmarks.table import HEAD, Row

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs/benchmarks.md"
README: Final = ROOT / "README.md"
_INTRODUCTION: Final = """# Benchmarks

`make bench` measures ours beside the usual way and writes this page; `make bench PART=serving` measures one part, both
sides of it in the same run. *Times better* is the usual way's figure against ours, the better way round. The rows in
bold are shown in the README. What the usual way is in each case stands in the files of `tests/benchmarks`; where a row
says "against" or "beside", that column holds what it names. *hymenoptera* are 397 photos of ants and bees.
"""


@dataclass
class Part:
    """A section of the page. `footer` says when and where it was measured, or what stopped it."""

    name: str
    title: str
    rows: list[Row] = field(default_factory=list)
    footer: str = ""

    def text(self) -> str:
        lines = [f"## {self.title}", "", HEAD, *(row.line() for row in self.rows), "", self.footer]
        return "\n".join(lines)


def write(page: Path, part: Part, order: Sequence[str]) -> None:
    """Put `part` into the page, in its place in `order`; other parts stay as they are."""
    known = parts(page.read_text(encoding="utf-8")) if page.exists() else {}
    known[part.name] = part.text()
    marked = [_marked(name, known[name]) for name in order if name in known]
    page.write_text("\n".join([_INTRODUCTION, *marked]), encoding="utf-8")


def parts(page: str) -> dict[str, str]:
    """The text of each part, without its markers."""
    return dict(re.findall(r"<!-- begin (\S+) -->\n(.*?)\n<!-- end \1 -->", page, re.DOTALL))


def excerpt(page: str) -> str:
    """The rows in bold, as the README shows them."""
    rows = [line.replace("**", "") for line in page.splitlines() if line.startswith("| **")]
    return "\n".join([HEAD, *rows])


def with_excerpt(readme: str, page: str) -> str:
    """The README, with the page's excerpt between its markers."""
    new = _marked("benchmarks", excerpt(page))
    return re.sub(r"<!-- begin benchmarks -->\n.*?<!-- end benchmarks -->\n", lambda _: new, readme, flags=re.DOTALL)


def _marked(name: str, text: str) -> str:
    return f"<!-- begin {name} -->\n{text}\n<!-- end {name} -->\n"
