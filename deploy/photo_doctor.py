"""The data doctor of the image, run over a folder of photos before it is sent anywhere."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import DeployError
from deploy.programs import IMAGE, find_engine


@dataclass(frozen=True)
class PhotoDoctor:
    """An engine, and an image of ours on it."""

    engine: str
    image: str

    def examine(self, folder: Path, *, say: Callable[[str], None]) -> None:
        """Show what it finds. Raises DeployError where `train` would refuse these photos."""
        mount = f"{folder.resolve()}:/opt/ml/input/data/training:ro"
        command = [self.engine, "run", "--rm", "--network", "none", "--volume", mount, self.image, "doctor"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        for line in done.stdout.splitlines():
            say(f"  {line}")
        if done.returncode:
            raise DeployError(
                f"the doctor does not let {folder} pass: {done.stderr.strip()[-1000:]}\n"
                "What to do: mend the photos, or send them as they are: `data push --no-doctor`."
            )


def find(repository: str) -> PhotoDoctor | None:
    """The doctor of the image that `make image` or build_and_push.sh left here; None without an engine or image."""
    engine = find_engine()
    if engine is None:
        return None
    for reference in (IMAGE, f"*/{repository}"):
        listed = subprocess.run(
            [engine, "image", "ls", "--quiet", "--filter", f"reference={reference}"], capture_output=True, text=True
        )
        if images := listed.stdout.split():
            return PhotoDoctor(engine, images[0])
    return None
