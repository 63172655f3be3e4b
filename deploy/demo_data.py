"""The demo's photos: scikit-learn's handwritten digits, or a copy of the user's folder, with some held out."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from container.contract import PARTS, PHOTO_SUFFIXES

HELD_OUT_SHARE = 0.2
SEED = 0


def write_digits(folder: Path) -> None:
    """Write the 1,797 digits that scikit-learn ships, 8 x 8 greys in 0 … 16, as folder/<digit>/<number>.png."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(digit) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * (255 / 16)).astype("uint8")).save(path)


def photos_by_class(folder: Path) -> dict[str, list[Path]]:
    """The photos of a folder-per-class set, or of train/, valid/ and test/ of one, put together.

    Raises SystemExit with a sentence where it is none.
    """
    if not folder.is_dir():
        raise SystemExit(f"{folder} is no folder; expected one with a folder of photos per class")
    names = {name for names in PARTS.values() for name in names}
    parts = [part for part in _folders(folder) if part.name.lower() in names and _folders(part)]
    roots = parts if any(part.name.lower() in PARTS["training"] for part in parts) else [folder]
    classes: dict[str, list[Path]] = {}
    for entry in (entry for root in roots for entry in _folders(root)):
        if photos := _photos(entry):
            classes.setdefault(entry.name, []).extend(photos)
    if len(classes) < 2:
        raise SystemExit(
            f"{folder} holds {len(classes)} folder(s) with photos; it needs one folder per class, 2 or more"
        )
    return classes


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _photos(folder: Path) -> list[Path]:
    # macOS adds "._*" files to archives, under the names of photos.
    found = (
        path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".")
    )
    return sorted(found)


def hold_out(classes: Mapping[str, Sequence[Path]], *, training: Path, held_out: Path) -> None:
    """Copy each class's photos to `training`, but a seeded fifth of them to `held_out`, which nothing trains on.

    A class of one photo keeps it; every other holds out one at least.
    """
    for name, photos in classes.items():
        shuffled = random.Random(f"{SEED} {name}").sample(photos, len(photos))  # noqa: S311  no secret
        count = min(len(photos) - 1, max(1, round(len(photos) * HELD_OUT_SHARE)))
        for position, photo in enumerate(shuffled):
            target = (held_out if position < count else training) / name
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(photo, target / f"{position:05}-{photo.name}")
