"""The data doctor: what is wrong with a set of photos, found in one pass that is linear in their number."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from container.errors import PhotoError
from container.preprocessing import open_photo, upright
from train.channels import Photo
from train.stop import STOP
from train.workers import usable_cores

# Of 128 bits of gradient hash: a photo scaled or saved again differs in 0 to 4, other photos in about 60.
_NEAR_BITS: Final = 4
# Two hashes that differ in at most 7 of 128 bits agree in one of eight bands of 16.
_BANDS: Final = 8
# Neighbours that are compared within a band: a bound that keeps the search linear among photos that all look alike.
_NEIGHBOURS: Final = 24
_TINY_SIDE: Final = 32
_IMBALANCE: Final = 10
_SHOWN: Final = 5


@dataclass(frozen=True)
class Facts:
    """What one look at a photo tells; `fault` is why it cannot be read, and then the rest is empty."""

    fault: str = ""
    digest: str = ""
    gradients: int | None = None  # 128 bits; None for a picture without contrast
    width: int = 0
    height: int = 0


@dataclass(frozen=True, kw_only=True)
class Place:
    """A photo, and the set that it lies in."""

    role: str
    photo: Photo


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that was found; pairs are of places."""

    photos: int
    unreadable: Mapping[str, str] = field(default_factory=dict)
    tiny: Sequence[str] = ()
    exact: Sequence[tuple[Place, Place]] = ()
    near: Sequence[tuple[Place, Place]] = ()
    class_counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def leaks(self) -> list[tuple[Place, Place]]:
        """Photos that lie in two sets: what is tested with was trained on."""
        return [pair for pair in (*self.exact, *self.near) if pair[0].role != pair[1].role]

    @property
    def contradictions(self) -> list[tuple[Place, Place]]:
        """The same photo, byte for byte, in two classes."""
        return [pair for pair in self.exact if pair[0].photo.label != pair[1].photo.label]

    @property
    def empty(self) -> list[str]:
        """Classes without a training photo that can be read."""
        return [name for name, count in self.class_counts.items() if not count]

    @property
    def imbalance(self) -> float:
        """Photos of the largest class for one of the smallest."""
        counts = self.class_counts.values()
        return max(counts) / max(1, min(counts)) if counts else 1.0

    def to_json(self) -> dict[str, Any]:
        def named(pairs: Sequence[tuple[Place, Place]]) -> list[list[str]]:
            return [[f"{place.role}: {place.photo.path}" for place in pair] for pair in pairs]

        return {
            "photos": self.photos,
            "unreadable": dict(self.unreadable),
            "tiny": list(self.tiny),
            "exact_duplicates": named(self.exact),
            "near_duplicates": named(self.near),
            "leaks": named(self.leaks),
            "contradictions": named(self.contradictions),
            "class_counts": dict(self.class_counts),
            "empty_classes": self.empty,
            "imbalance": self.imbalance,
        }


def look(paths: Sequence[Path]) -> dict[Path, Facts]:
    """Read and decode every photo once, on all cores (Pillow's decoders let other threads run)."""
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        return dict(zip(paths, pool.map(_facts, paths), strict=True))


def _facts(path: Path) -> Facts:
    STOP.check()
    try:
        data = path.read_bytes()
        # JPEGs decode at an eighth of their size; even so they are read to the end.
        photo = open_photo(data, min_side=_TINY_SIDE)
    except (PhotoError, OSError) as error:
        return Facts(fault=str(error))
    return Facts("", hashlib.sha256(data).hexdigest()[:32], gradient_hash(photo), photo.width, photo.height)


def gradient_hash(photo: Image.Image) -> int | None:
    """128 bits: whether the picture brightens to the right, and downwards, at 64 places each (dHash, both ways)."""
    small = photo.convert("L").resize((9, 9), Image.Resampling.BOX)
    small.info = dict(photo.info)
    grey = np.asarray(upright(small), np.int16)
    if int(grey.max()) - int(grey.min()) < 8:
        return None
    bits = np.concatenate([(grey[:8, 1:] > grey[:8, :-1]).ravel(), (grey[1:, :8] > grey[:-1, :8]).ravel()])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def examine(sets: Mapping[str, Sequence[Photo]], facts: Mapping[Path, Facts], class_names: Sequence[str]) -> Findings:
    """Put the facts together. `sets` are photos by role."""
    places = [Place(role=role, photo=photo) for role, photos in sets.items() for photo in photos]
    readable = [place for place in places if not facts[place.photo.path].fault]
    exact = list(_same_digest(readable, facts))
    counts = Counter(place.photo.label for place in readable if place.role == "training")
    return Findings(
        photos=len(places),
        unreadable={str(path): fact.fault for path, fact in facts.items() if fact.fault},
        tiny=[str(p.photo.path) for p in readable if min(_size(facts[p.photo.path])) < _TINY_SIDE],
        exact=exact,
        near=list(_near(readable, facts)),
        class_counts={name: counts[label] for label, name in enumerate(class_names)},
    )


def _size(fact: Facts) -> tuple[int, int]:
    return fact.width, fact.height


def _same_digest(places: Sequence[Place], facts: Mapping[Path, Facts]) -> Iterator[tuple[Place, Place]]:
    groups: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        groups[facts[place.photo.path].digest].append(place)
    for group in groups.values():
        yield from pairwise(group)


def _near(places: Sequence[Place], facts: Mapping[Path, Facts]) -> Iterator[tuple[Place, Place]]:
    """Pairs of different files whose hashes are close: each photo with its neighbours in every band."""
    seen: set[tuple[int, int]] = set()
    bands: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(_BANDS)]
    for index, place in enumerate(places):
        fact = facts[place.photo.path]
        if fact.gradients is None or min(_size(fact)) < _TINY_SIDE:
            continue  # Nothing to compare, or so little that different pictures look the same.
        for number, band in enumerate(bands):
            bucket = band[fact.gradients >> (16 * number) & 0xFFFF]
            for other in bucket[-_NEIGHBOURS:]:
                if (other, index) not in seen and _alike(facts[places[other].photo.path], fact):
                    seen.add((other, index))
                    yield places[other], place
            bucket.append(index)


def _alike(one: Facts, two: Facts) -> bool:
    if one.digest == two.digest or one.gradients is None or two.gradients is None:
        return False
    return (one.gradients ^ two.gradients).bit_count() <= _NEAR_BITS


def table(findings: Findings) -> str:
    """The findings for a person, a line each."""
    counts = findings.class_counts
    smallest, largest = min(counts, key=lambda n: counts[n]), max(counts, key=lambda n: counts[n])
    span = f"{smallest}: {counts[smallest]} … {largest}: {counts[largest]}"
    if counts[smallest] == counts[largest]:
        span = f"{counts[smallest]} photos each"
    rows = [
        ("photos", findings.photos, ""),
        ("unreadable, left out", len(findings.unreadable), _some(list(findings.unreadable))),
        (f"smaller than {_TINY_SIDE} pixels", len(findings.tiny), _some(findings.tiny)),
        ("same file twice", len(findings.exact), _pairs(findings.exact)),
        ("nearly the same photo", len(findings.near), _pairs(findings.near)),
        ("in two sets (leaks)", len(findings.leaks), _pairs(findings.leaks)),
        ("in two classes", len(findings.contradictions), _pairs(findings.contradictions)),
        ("classes without a photo", len(findings.empty), _some(findings.empty)),
        ("classes", len(counts), span),
    ]
    lines = [f"  {name:<26}{count:>7}  {detail}".rstrip() for name, count, detail in rows]
    if findings.imbalance > _IMBALANCE:
        lines.append(f"  the largest class has {findings.imbalance:.0f} times as many photos as the smallest")
    return "\n".join(lines)


def _some(names: Sequence[str]) -> str:
    more = "" if len(names) <= _SHOWN else f" and {len(names) - _SHOWN} more"
    return ", ".join(Path(name).name for name in names[:_SHOWN]) + more


def _pairs(pairs: Sequence[tuple[Place, Place]]) -> str:
    shown = [" = ".join(f"{place.role}/{place.photo.path.name}" for place in pair) for pair in pairs[:2]]
    return "; ".join(shown) + (f" and {len(pairs) - 2} more" if len(pairs) > 2 else "")
