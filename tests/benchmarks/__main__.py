"""Every benchmark, one after the other. One alone: `python -m tests.benchmarks.bench_serving`."""

from __future__ import annotations

import importlib
import pkgutil

import tests.benchmarks

for info in pkgutil.iter_modules(tests.benchmarks.__path__):
    if info.name.startswith("bench_"):
        print(f"# {info.name.removeprefix('bench_')}", flush=True)
        importlib.import_module(f"tests.benchmarks.{info.name}").main()
