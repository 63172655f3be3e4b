"""What a job lets people, and SageMaker, see while it runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from container import contract
from container.contract import Metric
from train.config import TrainConfig
from train.outcome import Epoch, Outcome


class Clock:
    """How long a loop waits for its next item."""

    def __init__(self) -> None:
        self.waited = 0.0

    def waits(self, items: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        iterator = iter(items)
        while True:
            started = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - started
            yield item


@contextmanager
def steps_profiler(folder: Path | None, steps: int = 3) -> Iterator[Callable[[], None]]:
    """Give what to call after each step: traces some early ones, if there is a folder to put the trace in."""
    if folder is None:
        yield lambda: None
        return
    profiler = torch.profiler.profile(
        schedule=torch.profiler.schedule(wait=0, warmup=1, active=steps, repeat=1),
        on_trace_ready=lambda trace: trace.export_chrome_trace(str(folder / "trace.json")),
    )
    left = iter(range(1 + steps))

    def after_step() -> None:
        if next(left, None) is not None:
            profiler.step()

    with profiler:  # Its end writes the trace where there were fewer steps.
        yield after_step


def print_epoch(epoch: Epoch, outcome: Outcome, *, config: TrainConfig) -> None:
    """One line for people, then one metric a line for SageMaker."""
    rate = f"{epoch.images_per_second:.1f} images/s, " if epoch.images_per_second else ""
    print(
        f"epoch {epoch.number}/{config.epochs}: "
        f"training loss {epoch.train_loss:.4f}, accuracy {epoch.train_accuracy:.4f}; "
        f"validation loss {epoch.validation_loss:.4f}, accuracy {epoch.validation_accuracy:.4f}; "
        f"{rate}{epoch.seconds:.1f} s{waiting_words(epoch.waiting)}",
        flush=True,
    )
    report(contract.TRAIN_LOSS, epoch.train_loss)
    report(contract.TRAIN_ACCURACY, epoch.train_accuracy)
    if rate:
        report(contract.TRAIN_IMAGES_PER_SECOND, epoch.images_per_second)
    report(contract.VALIDATION_LOSS, epoch.validation_loss)
    report(contract.VALIDATION_ACCURACY, epoch.validation_accuracy)
    report(contract.VALIDATION_BEST_ACCURACY, (outcome.best or epoch).validation_accuracy)


def waiting_words(share: float) -> str:
    """The end of a line that says how long something took."""
    return f", {share:.0%} of it waiting for data" if share else ""


def report(metric: Metric, value: float) -> None:
    """Print a figure alone on a line, where SageMaker's regexes look for it."""
    print(metric.line(value), flush=True)


def progress(
    items: Iterable[tuple[Tensor, Tensor]], title: str, *, total: int, shown: bool = True
) -> Iterable[tuple[Tensor, Tensor]]:
    """A bar for a person at a terminal; logs get none, since a log keeps every one of its redraws."""
    hidden = not (shown and sys.stderr.isatty())
    bar: Iterable[tuple[Tensor, Tensor]] = tqdm(
        items, desc=title, total=total, unit="batch", leave=False, disable=hidden
    )
    return bar
