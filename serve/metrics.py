"""Prometheus figures: workers write them into files of a shared folder, control adds them up beside HAProxy's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

# Where prometheus_client keeps the files of this process; it reads the variable when it is imported.
FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"

_SECONDS: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SHARES: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

# prometheus_client fails if a file goes between its listing and its reading.
_FILES: Final = threading.Lock()

RESPONSES = Counter("kennel_responses", "Answers of workers, by HTTP status", ["model", "code"])
STAGES = Histogram(
    "kennel_stage_seconds",
    "Time by stage: queue and total of a request, decode and inference of a photo",
    ["model", "stage"],
    buckets=_SECONDS,
)
PREDICTIONS = Counter("kennel_predictions", "Photos by the class that was answered", ["model", "label"])
CONFIDENCE = Histogram("kennel_confidence", "Probability of the class that was answered", ["model"], buckets=_SHARES)
TARGET = Gauge(
    "kennel_target_model",
    "What callers name the model (X-Amzn-SageMaker-Target-Model); the platform gives it another name here",
    ["model", "target_model"],
    multiprocess_mode="max",
)


def forget_figures(folder: Path, pids: Iterable[int]) -> None:
    """Remove the files of workers whose model is unloaded: endpoints of many models load and unload for months."""
    with _FILES:
        for pid in pids:
            for path in folder.glob(f"*_{pid}.db"):
                path.unlink(missing_ok=True)


class Gauges:
    """Figures that control knows at the moment it is asked: (name, help, label names, samples)."""

    def __init__(self, samples: Callable[[], Iterable[Metric]]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        yield from self._samples()


def gauge(name: str, words: str, samples: Iterable[tuple[dict[str, str], float]]) -> Metric:
    """One gauge and all its samples, each with its labels: a name may stand in the text once."""
    family = Metric(name, words, "gauge")
    for labels, value in samples:
        family.add_sample(name, labels, value)
    return family


def answers(by_status: Mapping[str, str]) -> Metric:
    """What the front counted."""
    family = CounterMetricFamily("kennel_answers", "Answers by HTTP status, the front's own included", labels=["code"])
    for status, count in by_status.items():
        family.add_metric([status], float(count))
    return family


def exposition(folder: Path, samples: Callable[[], Iterable[Metric]]) -> bytes:
    """The text format of all workers' figures, those of ended ones included, and of `samples`."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    registry.register(Gauges(samples))
    with _FILES:
        return generate_latest(registry)
