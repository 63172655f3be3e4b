"""The folders that a program leaves its results in: they can be written to, and hold nothing of an earlier run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from container.errors import UserError

# What `train` leaves in output/data; other files there are not ours.
_RESULTS: Final = ("doctor.json", "report.html", "report.json", "trace.json", "tensorboard/events.out.tfevents.*")

# In a trial's tree: the folder in which all trials of a search keep the features of the frozen layers.
SHARED_FEATURES: Final = "features"


def make_writable(folder: Path) -> None:
    """Make the folder where it is not there. Raises UserError where nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))  # A full disk still takes names.
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to ({error.strerror}); mount a folder there that this user may write"
        ) from error


def discard_results(folder: Path) -> None:
    """Remove what an earlier run left in its folder for results, which would pass for this one's."""
    for pattern in _RESULTS:
        for path in folder.glob(pattern):
            if path.is_file():
                path.unlink(missing_ok=True)  # Of several processes, another may have been first.
