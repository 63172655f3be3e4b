"""Benchmarks, into docs/benchmarks.md and the README's excerpt of it. About 50 minutes on two idle cores.

    python -m tests.benchmarks [all | head step waiting processes serving lambda]
        [--seconds 20] [--repeat 3] [--page docs/benchmarks.md]

Each figure is printed and written as soon as it is there. A benchmark that fails says so in its part of the page and
in the exit code, and the next one runs. With another --page the README stays as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.benchmarks import bench_lambda, bench_serving, bench_training, page
from tests.benchmarks.report import Benchmark, measure
from tests.benchmarks.table import Effort

BENCHMARKS: Final[Mapping[str, tuple[str, Benchmark]]] = {
    "head": ("Training: a head on a frozen ResNet-50", bench_training.head),
    "step": ("Training: all layers of ResNet-50, batches of 16", bench_training.step),
    "waiting": ("Training: does the loader keep up, ResNet-18", bench_training.waiting),
    "processes": ("Training: processes of one thread each, ResNet-18", bench_training.processes),
    "serving": ("Serving: ResNet-50, photos of 500 x 375", bench_serving.serving),
    "lambda": ("Lambda function", bench_lambda.package_and_calls),
}


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """`parts`: the keys of BENCHMARKS that are wanted."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parts = ["all", *BENCHMARKS]
    parser.add_argument("parts", nargs="*", default="all", choices=parts, metavar="part", help=", ".join(parts))
    parser.add_argument("--seconds", type=float, default=Effort.seconds, help="of each load of a server")
    parser.add_argument("--repeat", type=int, default=Effort.repeat, help="measurements a median is taken of")
    parser.add_argument("--page", type=Path, default=page.PAGE)
    given = parser.parse_args(arguments)
    if "all" in given.parts:
        given.parts = [*BENCHMARKS]
    return given


def main(arguments: list[str]) -> int:
    given = read_arguments(arguments)
    effort = Effort(seconds=given.seconds, repeat=given.repeat)
    failed = [name for name in given.parts if not measure(name, BENCHMARKS, effort, given.page)]
    if given.page == page.PAGE:
        readme = page.with_excerpt(page.README.read_text(encoding="utf-8"), page.PAGE.read_text(encoding="utf-8"))
        page.README.write_text(readme, encoding="utf-8")
    print(f"written to {given.page}" + (f"; failed: {', '.join(failed)}" if failed else ""), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
