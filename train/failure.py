"""The failure file, whose first 1,024 characters SageMaker shows as the job's FailureReason."""

from __future__ import annotations

import traceback
from pathlib import Path

from container.contract import FAILURE_MAX_CHARS
from container.errors import KennelError
from train.stop import Stopped


def failure_text(error: BaseException) -> str:
    """The message first; after it, for an error that nobody foresaw, as much of the traceback's end as fits."""
    if isinstance(error, KennelError | Stopped):
        return str(error)[:FAILURE_MAX_CHARS]
    message = f"{type(error).__name__}: {error}"[:FAILURE_MAX_CHARS]
    frames = "".join(traceback.format_tb(error.__traceback__))
    room = FAILURE_MAX_CHARS - len(message) - 2
    return f"{message}\n\n{frames[-room:]}" if room > 0 and frames else message


def write_failure(path: Path, text: str) -> None:
    """Write at once, so that a reader never sees half of it. Where it cannot be written, the log must do."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.tmp")
        staged.write_text(text, encoding="utf-8", errors="replace")
        staged.replace(path)
    except OSError as error:
        print(f"warning: {path} cannot be written: {error}", flush=True)
