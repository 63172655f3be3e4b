"""The folders of photos that SageMaker, or a user's -v, puts under /opt/ml/input/data.

A channel holds a folder a class. Several names are understood for each channel, and one channel whose root holds
train/, valid/ and test/ counts as three. Of each, a host may have all photos, or a part of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from container.contract import PARTS, PHOTO_SUFFIXES, SageMakerPaths
from container.errors import DataError
from train.config import did_you_mean

ALIASES: Final[Mapping[str, tuple[str, ...]]] = {**PARTS, "pretrained": ("pretrained",)}
_ROLE_OF: Final = {alias: role for role, aliases in ALIASES.items() for alias in aliases}
# Of a training channel's photos, the share that validates where no validation channel is given.
VALIDATION_SHARE: Final = 0.2

# What else is a photo is listed too, so that it is told of.
_LISTED: Final = PHOTO_SUFFIXES | {".heic", ".heif", ".avif"}
_NUMBERED: Final = re.compile(r"(\d+)\.(\D.*)")  # "001.Affenpinscher", but no "0.5mm"
_LAYOUT: Final = "laid out as training/<class>/*.jpg"
# What macOS adds to archives: a twin of every folder, with nothing but "._*" files.
_MACOS_TWIN: Final = "__MACOSX"


# Folders by name; of those named like training, whether folders lie in them.
Contents = dict[str, bool]
# What every host found, from what this one did.
Gather = Callable[[tuple[Contents, Contents]], list[tuple[Contents, Contents]]]


@dataclass(frozen=True)
class Photo:
    """A file and the index of its class; once it was looked at, what tells its bytes from others."""

    path: Path
    label: int
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class Channels:
    """Folders by canonical name, as they lie on disk."""

    training: Path
    validation: Path | None = None
    test: Path | None = None
    pretrained: Path | None = None


@dataclass(frozen=True, kw_only=True)
class PhotoSets:
    """What is trained on, selected by, and tested with; labels are indices into `class_names`."""

    class_names: tuple[str, ...]
    training: tuple[Photo, ...]
    validation: tuple[Photo, ...]
    test: tuple[Photo, ...] = ()


def find_channels(paths: SageMakerPaths, *, gather: Gather = lambda own: [own]) -> Channels:
    """Locate the channels: by inputdataconfig.json or, without one, by the folders present.

    Folders of a channel may be missing where other hosts have them. Raises DataError for Pipe mode, two names of one
    channel, and a missing training channel.
    """
    folders = _by_role(_named_folders(paths), paths)
    if "training" not in folders:
        raise DataError(_no_training(paths))
    return Channels(**{**_split_layout(folders.pop("training"), gather), **folders})


def _named_folders(paths: SageMakerPaths) -> dict[str, Path]:
    config = _input_data_config(paths.input_data_config)
    piped = [name for name, entry in config.items() if entry.get("TrainingInputMode") == "Pipe"]
    if piped:
        raise DataError(f"channel {piped[0]!r} is in Pipe mode, which is not supported; use File or FastFile mode")
    # SageMaker puts `<channel>-manifest` files beside the channels: where it names them, nothing else is looked at.
    if config:
        return {name: paths.channel(name) for name in config}
    if not paths.data.is_dir():
        return {}
    return {path.name: path for path in _folders(paths.data)}


def _input_data_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict) or not all(isinstance(entry, dict) for entry in config.values()):
        raise DataError(f"{path} must hold an object of channels, {{name: {{…}}}}")
    return config


def _by_role(named: Mapping[str, Path], paths: SageMakerPaths) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, path in named.items():
        role = _ROLE_OF.get(name.lower())
        if role is None:
            print(f"warning: channel {name!r} is not used{did_you_mean(name.lower(), _ROLE_OF)}", flush=True)
            continue
        if role in found:
            raise DataError(f"channels {found[role].name!r} and {name!r} both mean {role}; give one of them")
        found[role] = path
    return found


def _no_training(paths: SageMakerPaths) -> str:
    names = sorted(path.name for path in paths.data.iterdir()) if paths.data.is_dir() else []
    found = f"found: {', '.join(names[:8])}" if names else f"{paths.data} holds nothing"
    return (
        f"there is no channel 'training' in {paths.data} ({found}); name one in the job's InputDataConfig, or mount "
        f"photos with -v …/photos:{paths.channel('training')}"
    )


def _split_layout(root: Path, gather: Gather) -> dict[str, Path]:
    """Three channels where `root`, or the one folder in it, holds train/ beside valid/ or test/, on all hosts together.

    Raises DataError for two names of one of them.
    """
    own = _contents(root)
    everywhere = gather((own, _contents(root / next(iter(own))) if len(own) == 1 else {}))
    outer, inner = (_together(found) for found in zip(*everywhere, strict=True))
    if len(outer) == 1 and _is_split(inner):
        return _parts(root / next(iter(outer)), inner)
    return _parts(root, outer) if _is_split(outer) else {"training": root}


def _contents(folder: Path) -> Contents:
    return {path.name: _part_of(path.name) == "training" and bool(_folders(path)) for path in _folders(folder)}


def _together(found: Iterable[Contents]) -> Contents:
    together: Contents = {}
    for contents in found:
        together |= {name: holds_folders or together.get(name, False) for name, holds_folders in contents.items()}
    return together


def _part_of(name: str) -> str | None:
    role = _ROLE_OF.get(name.lower())
    return role if role in PARTS else None


def _is_split(contents: Contents) -> bool:
    """Beside folders of other names, train/ may be a class, which holds photos and no folders."""
    parts = set(map(_part_of, contents))
    return "training" in parts and len(parts - {None}) > 1 and (None not in parts or any(contents.values()))


def _parts(base: Path, names: Iterable[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name in sorted(names):
        part = _part_of(name)
        if part is None:
            print(f"warning: the folder {name!r} in {base} lies beside train/ and is not used", flush=True)
        elif part in found:
            raise DataError(f"folders {found[part].name!r} and {name!r} in {base} both mean {part}; keep one of them")
        else:
            found[part] = base / name
    return found


def _folders(root: Path) -> list[Path]:
    """Folders that mean something; none where `root` is missing, as a host's part of a channel may be."""
    return [path for path in _listed(root) if path.is_dir()]


def _listed(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if not _is_clutter(path.name)) if root.is_dir() else []


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name == _MACOS_TWIN


def class_folder_names(channels: Channels) -> list[str]:
    """Names of the class folders of training on this host."""
    return [folder.name for folder in _folders(channels.training)]


def list_photos(channels: Channels, folder_names: Iterable[str] | None = None) -> PhotoSets:
    """List the photos of all channels, validation empty where no such channel is given (see `split_validation`).

    `folder_names` are those of all hosts, where hosts hold different parts of the data. Raises DataError for fewer
    than two classes, or classes that training does not have.
    """
    found = _in_order(set(folder_names or class_folder_names(channels)), channels.training)
    class_names = display_names(found)
    labels = {name: label for label, name in enumerate(found)}
    labels |= {name: label for label, name in enumerate(class_names)}
    photos = {
        role: _other_channel(role, root, labels)
        for role, root in (("validation", channels.validation), ("test", channels.test))
        if root is not None
    }
    for root in filter(None, (channels.training, channels.validation, channels.test)):
        _warn_of_loose_photos(root)
    folders = _folders(channels.training)
    return PhotoSets(
        class_names=class_names,
        training=_photos(folders, [labels[folder.name] for folder in folders]),
        validation=photos.get("validation", ()),
        test=photos.get("test", ()),
    )


def _warn_of_loose_photos(root: Path) -> None:
    loose = [path for path in _listed(root) if path.suffix.lower() in _LISTED]
    if loose:
        text = f"{len(loose)} photo(s) in {root} lie in no class folder and are not used, such as {loose[0].name}"
        print(f"warning: {text}", flush=True)


def without(sets: PhotoSets, unreadable: Container[Path]) -> PhotoSets:
    """Leave the named files out."""

    def kept(photos: Sequence[Photo]) -> tuple[Photo, ...]:
        return tuple(photo for photo in photos if photo.path not in unreadable)

    return replace(sets, training=kept(sets.training), validation=kept(sets.validation), test=kept(sets.test))


def check_classes(class_names: Sequence[str], filled: Container[int]) -> None:
    """`filled` are the labels that have a training photo, on any host. Raises DataError where a class has none."""
    empty = [name for label, name in enumerate(class_names) if label not in filled]
    if len(empty) == len(class_names):
        raise DataError(f"channel 'training' holds no photos; expected JPEG, PNG or WebP files, {_LAYOUT}")
    if empty:
        raise DataError(
            f"channel 'training' has {len(empty)} class folder(s) without a readable photo ({', '.join(empty[:8])}); "
            "add photos or remove the folders"
        )


def _in_order(names: Iterable[str], root: Path) -> list[str]:
    found = sorted(names)
    if garbled := [name for name in found if not _is_text(name)]:
        raise DataError(f"the class folder {garbled[0]!a} in {root} has a name that is not UTF-8; rename it")
    if len(found) < 2:
        raise DataError(
            f"channel 'training' holds {len(found)} class folder(s) ({', '.join(found) or 'none'}) in {root}; "
            f"it needs at least 2, {_LAYOUT}"
        )
    return [name for _, name in sorted(_numbers(found).items())] or found


def _numbers(folder_names: Sequence[str]) -> dict[int, str]:
    """The folders by number; empty unless each begins with one of its own, which is an index then, not a part of it."""
    matches = [_NUMBERED.fullmatch(name) for name in folder_names]
    numbers = {int(match[1]): match[0] for match in matches if match}
    return numbers if len(numbers) == len(folder_names) else {}


def _is_text(name: str) -> bool:
    # Bytes of a name that are no UTF-8, as archives from elsewhere have, are surrogates in Python's text.
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def display_names(folder_names: Sequence[str]) -> tuple[str, ...]:
    """`001.Affenpinscher` is shown as `Affenpinscher`, where every folder is numbered and no two become the same."""
    shown = tuple(map(_unnumbered, folder_names)) if _numbers(folder_names) else ()
    return shown if len(set(shown)) == len(folder_names) else tuple(folder_names)


def _photos(folders: Iterable[Path], labels: Iterable[int]) -> tuple[Photo, ...]:
    photos: list[Photo] = []
    ignored: list[Path] = []
    for folder, label in zip(folders, labels, strict=True):
        for path in sorted(folder.rglob("*")):
            if any(map(_is_clutter, path.relative_to(folder).parts)) or path.is_dir():
                continue  # ".DS_Store", ".ipynb_checkpoints", and the "._*" files that macOS adds to archives
            if path.suffix.lower() in _LISTED:
                photos.append(Photo(path, label))
            else:
                ignored.append(path)
    if ignored:
        print(f"warning: {len(ignored)} file(s) that are not photos are ignored, such as {ignored[0]}", flush=True)
    return tuple(photos)


def _other_channel(role: str, root: Path, labels: Mapping[str, int]) -> tuple[Photo, ...]:
    folders = _folders(root)
    found = [labels.get(folder.name, labels.get(_unnumbered(folder.name))) for folder in folders]
    unknown = [folder.name for folder, label in zip(folders, found, strict=True) if label is None]
    if unknown:
        raise DataError(
            f"channel {role!r} has {len(unknown)} class folder(s) that training does not have "
            f"({', '.join(unknown[:8])}) in {root}; use the same class folders in both"
        )
    return _photos(folders, [label for label in found if label is not None])


def _unnumbered(name: str) -> str:
    match = _NUMBERED.fullmatch(name)
    return match[2] if match else name


def split_validation(sets: PhotoSets, *, seed: int) -> PhotoSets:
    """Hold out a share of every class of training for validation, where there is no validation channel.

    Drawn from class and file names, so that every host and every later run agrees. A class of one photo keeps it.
    """
    by_label: dict[int, list[Photo]] = {}
    for photo in sets.training:
        by_label.setdefault(photo.label, []).append(photo)
    held_out: set[Path] = set()
    for members in by_label.values():
        count = min(len(members) - 1, max(1, round(len(members) * VALIDATION_SHARE)))
        drawn = sorted(members, key=lambda photo: _draw(sets.class_names[photo.label], photo.path.name, seed))
        held_out.update(photo.path for photo in drawn[:count])
    return replace(
        sets,
        training=tuple(photo for photo in sets.training if photo.path not in held_out),
        validation=tuple(photo for photo in sets.training if photo.path in held_out),
    )


def check_validation(count: int) -> None:
    """Raises DataError where no photo is left to validate with, on any host."""
    if not count:
        raise DataError("every class has a single photo, so none is left to validate with; add photos to the classes")


def _draw(class_name: str, file_name: str, seed: int) -> bytes:
    return hashlib.sha256(os.fsencode(f"{seed}:{class_name}/{file_name}")).digest()
