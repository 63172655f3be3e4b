"""The photo sets of a job, as one of its processes sees them.

SageMaker gives every host all photos of a channel, or (ShardedByS3Key) each a part of them. Which it was is told from
the file names that the hosts see, since not every platform writes it down.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from container.errors import DataError
from train.channels import (
    Channels,
    Photo,
    PhotoSets,
    check_classes,
    check_validation,
    class_folder_names,
    list_photos,
    split_validation,
    without,
)
from train.distributed import World
from train.doctor import Facts, Findings, examine, look

ROLES: Final = ("training", "validation", "test")
# Photos that each process looks at before all meet: where a host has many more than another, that one would else wait
# for longer than a collective may take. Some FastFile channels take a second a photo.
_ROUND: Final = 256


@dataclass(frozen=True, kw_only=True)
class JobSets:
    """This host's photos by role, and the roles of which each host has a part of its own."""

    photos: PhotoSets
    world: World
    sharded: frozenset[str] = frozenset()
    unreadable: frozenset[str] = frozenset()  # roles of which no photo could be read, on any host
    # How many training photos each process has to itself; None where all see the same.
    shards: tuple[int, ...] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.photos.class_names

    def own(self, role: str) -> Sequence[Photo]:
        """This process's share: over all processes, every photo is in one of them."""
        return _share(of_role(self.photos, role), self.world, sharded=role in self.sharded)

    def answered(self, role: str) -> tuple[Photo, ...]:
        """Photos of the role in the order in which all processes' answers are put together."""
        if role in self.sharded:
            return tuple(photo for part in self.world.gather(list(self.own(role))) for photo in part)
        photos, size = of_role(self.photos, role), self.world.size
        return tuple(photo for rank in range(size) for photo in photos[rank::size])

    def count(self, role: str) -> int:
        """Photos of the role on all hosts."""
        return sum(self.world.gather(len(self.own(role))))

    def class_counts(self) -> list[int]:
        """Training photos of each class, on all hosts."""
        counts: Counter[int] = Counter()
        for part in self.world.gather([photo.label for photo in self.own("training")]):
            counts.update(part)
        return [counts[label] for label in range(len(self.class_names))]


def of_role(sets: PhotoSets, role: str) -> tuple[Photo, ...]:
    photos: tuple[Photo, ...] = getattr(sets, role)
    return photos


def spread(photos: Sequence[Photo], most: int) -> list[Photo]:
    """At most that many photos, over all of them evenly: they lie class after class."""
    count = min(most, len(photos))
    return [photos[index * len(photos) // count] for index in range(count)]


def open_photo_sets(channels: Channels, *, seed: int, world: World) -> tuple[JobSets, Findings]:
    """List the photos, look at each, leave out those that cannot be read, and hold out a validation set.

    Raises DataError for channels that are not laid out as folders of classes; `check_photo_sets` for what is left.
    """
    names = {name for part in world.gather(class_folder_names(channels)) for name in part}
    listed = list_photos(channels, names)
    given = _given(channels, listed, world)
    facts = _look(listed, world)
    readable = _with_digests(without(listed, {path for path, fact in facts.items() if fact.fault}), facts)
    for path, fact in facts.items():
        if fact.fault:
            world.say(f"warning: {path} is left out: {fact.fault}")
    counts = [world.gather((len(of_role(listed, role)), len(of_role(readable, role)))) for role in ROLES]
    lost = {
        role
        for role, found in zip(ROLES, counts, strict=True)
        if any(a for a, _ in found) and not any(b for _, b in found)
    }
    sets = _with_shards(readable if "validation" in given else split_validation(readable, seed=seed), world)
    sets = replace(sets, unreadable=frozenset(lost))
    return sets, _findings(sets, facts)


def _given(channels: Channels, listed: PhotoSets, world: World) -> list[str]:
    """Roles that have a channel. Raises DataError for one beside training that has no photo, on any host."""
    hosts = world.gather({role: (getattr(channels, role), len(of_role(listed, role))) for role in ROLES})
    given = [role for role in ROLES if any(host[role][0] for host in hosts)]
    for role in given[1:]:
        if not any(host[role][1] for host in hosts):
            root = next(host[role][0] for host in hosts if host[role][0])
            raise DataError(
                f"channel {role!r} holds no photos in {root}; expected JPEG, PNG or WebP files in class folders"
            )
    return given


def check_photo_sets(sets: JobSets) -> None:
    """Raises DataError where a class, a set or a process is left without a photo."""
    check_classes(sets.class_names, {label for label, count in enumerate(sets.class_counts()) if count})
    if sets.unreadable:
        raise DataError(f"channel {min(sets.unreadable)!r} holds no photo that can be read; the log names each fault")
    check_validation(sets.count("validation"))
    if min(sets.world.gather(len(sets.own("training")))) == 0:
        raise DataError("a host has no training photo; use fewer hosts, or give every host photos")


def _look(listed: PhotoSets, world: World) -> dict[Path, Facts]:
    """Each process looks at its share; all learn of every photo."""
    sets = _with_shards(listed, world)
    paths = [photo.path for role in ROLES for photo in sets.own(role)]
    own: dict[Path, Facts] = {}
    for start in range(0, max(world.gather(len(paths))), _ROUND):
        own |= look(paths[start : start + _ROUND])
        world.gather(start)  # For the meeting alone.
    facts: dict[Path, Facts] = {}
    for role in ROLES:
        # By position, not by path: a host may have its channels elsewhere.
        parts = world.gather([own[photo.path] for photo in sets.own(role)])
        found = (fact for part in parts for fact in part)
        facts |= {photo.path: fact for photo, fact in zip(sets.answered(role), found, strict=True)}
    return facts


def _with_digests(sets: PhotoSets, facts: Mapping[Path, Facts]) -> PhotoSets:
    def known(photos: Sequence[Photo]) -> tuple[Photo, ...]:
        return tuple(replace(photo, digest=facts[photo.path].digest) for photo in photos)

    return replace(sets, training=known(sets.training), validation=known(sets.validation), test=known(sets.test))


def _findings(sets: JobSets, facts: Mapping[Path, Facts]) -> Findings:
    everything = {role: sets.answered(role) for role in ROLES}
    return examine(everything, facts, sets.class_names)


def check_leaks(findings: Findings, *, strict: bool) -> None:
    """Warn of photos that lie in two sets. Raises DataError where that is an error."""
    if not findings.leaks:
        return
    one, two = findings.leaks[0]
    text = (
        f"{len(findings.leaks)} photo(s) lie in two sets, such as {one.role}/{one.photo.path.name} and "
        f"{two.role}/{two.photo.path.name}: figures of the second will be too good"
    )
    if strict:
        raise DataError(f"{text}; remove them, or set strict_data=false")
    print(f"warning: {text}", flush=True)


def _with_shards(sets: PhotoSets, world: World) -> JobSets:
    digests = world.gather({role: _digest(of_role(sets, role)) for role in ROLES})
    sharded = {role for role in ROLES if len({digest[role] for digest in digests}) > 1}
    if sharded:
        world.say(f"each host has its own part of: {', '.join(sorted(sharded))}")
    found = JobSets(photos=sets, world=world, sharded=frozenset(sharded))
    shards = tuple(world.gather(len(found.own("training"))))
    return replace(found, shards=shards if "training" in sharded else None)


def _digest(photos: Sequence[Photo]) -> str:
    names = "\n".join(f"{photo.label}/{photo.path.name}" for photo in photos)
    return hashlib.sha256(os.fsencode(names)).hexdigest()


def _share(photos: Sequence[Photo], world: World, *, sharded: bool) -> Sequence[Photo]:
    if sharded:
        return photos[world.local_rank :: world.local_size]
    return photos[world.rank :: world.size]
