"""The page of benchmarks keeps what was measured, whatever fails, and the README shows its rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import page
from tests.benchmarks.__main__ import BENCHMARKS as PARTS
from tests.benchmarks.__main__ import read_arguments
from tests.benchmarks.report import measure
from tests.benchmarks.table import HEAD, Effort, Row, Table


def good(table: Table, effort: Effort) -> None:
    table.add("rate", ours=30, other=10, unit="/s", target=2.5, essential=True)
    table.add("p50", ours=20 * effort.repeat, other=30, unit="ms", smaller=True, target=1)


def broken(table: Table, effort: Effort) -> None:
    table.add("start", ours=1.5, unit="s", limit=1)
    raise RuntimeError("no answers within 20 s")


BENCHMARKS = {"first": ("First", good), "second": ("Second", broken)}


def test_readme_shows_the_essential_rows_of_the_page() -> None:
    readme = page.README.read_text()
    assert "<!-- begin benchmarks -->" in readme
    assert page.with_excerpt(readme, page.PAGE.read_text()) == readme


def test_a_benchmark_that_fails_keeps_its_rows_and_the_others(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    assert not measure("second", BENCHMARKS, Effort(), path)
    assert measure("first", BENCHMARKS, Effort(repeat=1), path)
    found = page.parts(path.read_text())
    assert list(found) == ["first", "second"]
    assert "| **rate** | 30 /s | 10 /s | 3.00 | 2.5 times | reached |" in found["first"]
    assert "| start | 1.5 s |  |  | at most 1 s | missed |" in found["second"]
    assert "**Stopped by RuntimeError: no answers within 20 s**" in found["second"]


def test_one_benchmark_measured_again_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    for name in BENCHMARKS:
        measure(name, BENCHMARKS, Effort(repeat=1), path)
    before = page.parts(path.read_text())
    measure("first", BENCHMARKS, Effort(repeat=2), path)
    after = page.parts(path.read_text())
    assert after["second"] == before["second"]
    assert "| p50 | 40 ms | 30 ms | 0.75 | 1 times | missed |" in after["first"]


def test_rows_are_written_before_the_benchmark_ends(tmp_path: Path) -> None:
    path = tmp_path / "page.md"

    def looks(table: Table, effort: Effort) -> None:
        table.add("rate", ours=1, unit="/s")
        assert "| rate | 1 /s |" in path.read_text()
        assert "not ended yet" in path.read_text()

    assert measure("only", {"only": ("Only", looks)}, Effort(), path), path.read_text()
    assert "not ended yet" not in path.read_text()


def test_the_machine_is_described(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    measure("first", BENCHMARKS, Effort(), path)
    for word in ("UTC", "load average", "cores", "GiB", "Linux", "torch", "onnxruntime", "revision"):
        assert word in path.read_text(), word


def test_the_readme_takes_the_rows_in_bold() -> None:
    text = page.Part("x", "X", [Row(figure="a", ours="1", essential=True), Row(figure="b", ours="2")], "today").text()
    assert page.excerpt(text) == f"{HEAD}\n| a | 1 |  |  |  |  |"
    readme = "# Kennel\n<!-- begin benchmarks -->\nold\n<!-- end benchmarks -->\nrest\n"
    assert page.with_excerpt(readme, text) == readme.replace("old", page.excerpt(text))


@pytest.mark.parametrize(("value", "shown"), [(1234.5, "1234 s"), (31.25, "31.2 s"), (0.0312, "0.0312 s")])
def test_figures_have_three_digits(value: float, shown: str) -> None:
    rows: list[Row] = []
    Table(rows.append).add("x", ours=value, unit="s")
    assert rows[0].ours == shown


def test_without_arguments_all_parts_are_measured() -> None:
    assert read_arguments([]).parts == list(PARTS)
    assert read_arguments(["head", "serving"]).parts == ["head", "serving"]
    with pytest.raises(SystemExit):
        read_arguments(["sevring"])
