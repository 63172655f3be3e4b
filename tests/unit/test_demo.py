"""`make demo` with people's own photos: which it takes, and what it calls their classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import demo, programs
from deploy.demo_data import hold_out, photos_by_class
from tests.support import encoded, picture


def fill(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(encoded(picture(9, 9), "JPEG"))


def counts(folder: Path) -> dict[str, int]:
    return {name: len(photos) for name, photos in photos_by_class(folder).items()}


def test_the_parts_of_a_published_set_are_put_together(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("val", 2), ("annotations", 1)):
        for name in ("ants", "bees"):
            fill(tmp_path / part / name, count)
    assert counts(tmp_path) == {"ants": 6, "bees": 6}


def test_clutter_is_no_photo(tmp_path: Path) -> None:
    for name in ("ants", "bees", ".git", "__MACOSX"):
        fill(tmp_path / name, 2 if name != "__MACOSX" else 0)
    (tmp_path / "ants" / "._0.jpg").write_text("of macOS")
    (tmp_path / "ants" / "notes.txt").write_text("of mine")
    assert counts(tmp_path) == {"ants": 2, "bees": 2}


def test_what_is_no_set_of_photos_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is no folder"):
        photos_by_class(tmp_path / "absent")
    fill(tmp_path / "ants", 2)
    with pytest.raises(SystemExit, match="one folder per class"):
        photos_by_class(tmp_path)


def test_a_photo_of_every_class_is_held_out_and_one_is_left(tmp_path: Path) -> None:
    for name, count in (("a", 1), ("b", 2), ("c", 10)):
        fill(tmp_path / "all" / name, count)
    hold_out(photos_by_class(tmp_path / "all"), training=tmp_path / "training", held_out=tmp_path / "held-out")
    assert counts(tmp_path / "training") == {"a": 1, "b": 1, "c": 8}
    assert counts(tmp_path / "held-out") == {"b": 1, "c": 2}


def test_photos_in_the_folder_that_each_demo_empties_are_not_lost() -> None:
    with pytest.raises(SystemExit, match="move the photos elsewhere"):
        demo.prepare(demo.FOLDER / "held-out")


@pytest.mark.parametrize(
    ("folder", "class_names", "shown"),
    [
        ("001.Affenpinscher", ["Affenpinscher", "Afghan_hound"], "Affenpinscher"),
        ("ants", ["ants", "bees"], "ants"),
        ("1.5", ["1.5", "2.5"], "1.5"),
    ],
)
def test_a_class_is_called_as_training_calls_it(folder: str, class_names: list[str], shown: str) -> None:
    assert demo.shown_name(folder, class_names) == shown


@pytest.mark.parametrize(
    ("code", "words"), [(137, "lack of memory"), (125, "could not be started"), (3, "lines above")]
)
def test_a_training_that_left_no_reason_is_a_sentence(tmp_path: Path, code: int, words: str) -> None:
    assert words in demo.reason(tmp_path / "failure", code)
    (tmp_path / "failure").write_text("the channel is empty")
    assert demo.reason(tmp_path / "failure", code) == "the channel is empty"


def test_an_accuracy_below_the_least_ends_the_demo() -> None:
    right, wrong = (demo.Answer(truth="3", label=label, probability=0.9) for label in ("3", "5"))
    demo.judge([right] * 95 + [wrong] * 5, least=0.95)
    demo.judge([wrong], least=0)
    with pytest.raises(SystemExit, match=r"accuracy is 94\.0%, below 95%"):
        demo.judge([right] * 94 + [wrong] * 6, least=0.95)
    with pytest.raises(SystemExit, match="can be read"):
        demo.judge([], least=0)


@pytest.mark.parametrize(
    ("name", "said", "rootless"),
    [
        ("docker", "[name=seccomp,profile=builtin name=rootless name=cgroupns]", True),
        ("docker", "[name=apparmor name=seccomp,profile=builtin name=cgroupns]", False),
        ("podman", "true", True),
        ("podman", "false", False),
    ],
)
def test_a_rootless_engine_is_known_by_what_it_says(tmp_path: Path, name: str, said: str, rootless: bool) -> None:
    engine = tmp_path / name
    field = {"docker": "SecurityOptions", "podman": "Host.Security.Rootless"}[name]
    engine.write_text(f'#!/bin/sh\n[ "$*" = "info --format {{{{.{field}}}}}" ] && echo "{said}"\n')
    engine.chmod(0o755)
    assert programs.is_rootless(str(engine)) is rootless
