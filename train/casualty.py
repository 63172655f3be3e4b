"""Why a training process ended: what it leaves for the process that started it, and what hosts tell each other.

Where one process fails, those that wait for it in a collective fail in its wake, perhaps sooner than its own word is
read. So every word says when it was written, and whether it may be of such a wake.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from container.errors import KennelError, TrainingError, UserError
from train.stop import Stopped

# gloo names its source file in all that it says; torch says the last where a collective takes too long.
_OF_COLLECTIVES: Final = ("gloo/", "NCCL", "Operation timed out")
_KINDS: Final[dict[str, type[BaseException]]] = {"stopped": Stopped, "user": UserError, "other": TrainingError}


@dataclass(frozen=True, kw_only=True)
class Casualty:
    """One process's end; `wake` where it may have ended only because another one had."""

    message: str
    kind: str = "other"
    time: float = 0.0
    wake: bool = False

    @classmethod
    def of(cls, error: BaseException, *, place: str, asked: bool = False) -> Casualty:
        """`place` names the process to those who read the message; `asked` says that the job itself was to stop."""
        known = isinstance(error, KennelError | Stopped)
        kind = "stopped" if isinstance(error, Stopped) else "user" if isinstance(error, UserError) else "other"
        message = str(error) if known else f"{type(error).__name__}: {error}"
        return cls(
            message=message if kind != "other" else f"{message} ({place})",
            kind=kind,
            time=time.time(),
            # Where one process ends, torchrun sends SIGTERM to those beside it.
            wake=(isinstance(error, Stopped) and not asked) or _of_a_collective(error),
        )

    def error(self) -> BaseException:
        return _KINDS.get(self.kind, TrainingError)(self.message)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _of_a_collective(error: BaseException) -> bool:
    """Whether it may be another process that failed. gloo raises RuntimeError itself, as many others do."""
    from torch.distributed import DistError  # torch takes seconds to import.

    said = type(error) is RuntimeError and any(words in str(error) for words in _OF_COLLECTIVES)
    return said or isinstance(error, DistError)


def first_of(found: Iterable[Casualty]) -> Casualty | None:
    """The one to blame: the earliest of those that did not fail in another's wake, else the earliest."""
    return min(found, key=lambda one: (one.wake, one.time), default=None)


def leave_word(folder: Path, rank: int, casualty: Casualty) -> None:
    staged = folder / f".failure-{rank}"
    staged.write_text(json.dumps(casualty.to_json()), encoding="utf-8")
    staged.replace(folder / f"failure-{rank}.json")


def words_in(folder: Path) -> dict[int, Casualty]:
    """What processes left in the folder, by rank."""
    return {
        int(path.stem.partition("-")[2]): Casualty(**json.loads(path.read_text()))
        for path in folder.glob("failure-*.json")
    }
