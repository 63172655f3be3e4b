"""The data doctor: what it finds, and what it lets pass."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from PIL import Image

from container.errors import DataError
from tests.support import encoded, picture
from train.channels import Photo
from train.doctor import Facts, Findings, examine, look, table
from train.sets import check_leaks


def findings(sets: dict[str, list[Photo]], names: tuple[str, ...] = ("ants", "bees")) -> Findings:
    return examine(sets, look([photo.path for photos in sets.values() for photo in photos]), names)


def write(path: Path, data: bytes, label: int = 0) -> Photo:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return Photo(path, label)


def test_a_healthy_set_has_nothing_to_report(tmp_path: Path) -> None:
    photos = [
        write(tmp_path / f"{seed}.jpg", encoded(picture(90, 60, seed=seed), "JPEG"), seed % 2) for seed in range(20)
    ]
    found = findings({"training": photos})
    assert (found.exact, found.near, found.leaks, found.contradictions, found.tiny) == ([], [], [], [], [])
    assert found.class_counts == {"ants": 10, "bees": 10}
    assert found.imbalance == 1
    assert table(found).splitlines()[-1].split() == ["classes", "2", "10", "photos", "each"]


def test_the_same_photo_is_found_whatever_was_done_to_the_file(tmp_path: Path) -> None:
    photo = picture(400, 300)
    original = write(tmp_path / "a.jpg", encoded(photo, "JPEG", quality=95))
    copy = write(tmp_path / "b.jpg", encoded(photo, "JPEG", quality=95), 1)
    saved_again = write(tmp_path / "c.jpg", encoded(photo, "JPEG", quality=40))
    scaled = write(tmp_path / "d.png", encoded(photo.resize((200, 150))))
    found = findings({"training": [original, copy], "validation": [saved_again], "test": [scaled]})
    assert [{place.photo.path.name for place in pair} for pair in found.exact] == [{"a.jpg", "b.jpg"}]
    near = {frozenset(place.photo.path.name for place in pair) for pair in found.near}
    assert {frozenset({"a.jpg", "c.jpg"}), frozenset({"a.jpg", "d.png"}), frozenset({"c.jpg", "d.png"})} <= near
    assert len(found.contradictions) == 1
    assert {place.role for pair in found.leaks for place in pair} == {"training", "validation", "test"}


def test_leaks_are_a_warning_or_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = encoded(picture(64, 64))
    found = findings({"training": [write(tmp_path / "a.png", data)], "validation": [write(tmp_path / "b.png", data)]})
    check_leaks(found, strict=False)
    assert "1 photo(s) lie in two sets, such as training/a.png and validation/b.png" in capsys.readouterr().out
    with pytest.raises(DataError, match="strict_data"):
        check_leaks(found, strict=True)
    check_leaks(findings({"training": []}), strict=True)


def test_blank_and_tiny_pictures_are_not_taken_for_copies(tmp_path: Path) -> None:
    blank = [write(tmp_path / f"{value}.png", encoded(Image.new("RGB", (64, 64), (value,) * 3))) for value in range(9)]
    tiny = [write(tmp_path / f"t{seed}.png", encoded(picture(8, 8, seed=seed))) for seed in range(9)]
    found = findings({"training": [*blank, *tiny]})
    assert found.near == []
    assert len(found.tiny) == 9


def test_the_table_and_its_json_name_what_was_found(tmp_path: Path) -> None:
    many = [write(tmp_path / f"{seed}.png", encoded(picture(40, 40, seed=seed))) for seed in range(11)]
    one = write(tmp_path / "one.png", encoded(picture(40, 40, seed=99)), 1)
    broken = write(tmp_path / "broken.jpg", encoded(picture(), "JPEG")[:300])
    facts = look([photo.path for photo in (*many, one, broken)])
    assert "truncated" in facts[broken.path].fault
    found = examine({"training": [*many, one]}, facts, ("ants", "bees"))
    text = table(found)
    assert "broken.jpg" in text
    assert "bees: 1 … ants: 11" in text
    assert "11 times as many photos" in text
    described = json.loads(json.dumps(found.to_json()))
    assert described["unreadable"] == {str(broken.path): facts[broken.path].fault}
    assert described["imbalance"] == 11


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_photos_are_looked_at_in_less_than_five_minutes(tmp_path: Path) -> None:
    """On two cores it takes a tenth of that; every hundredth photo is there twice, saved anew."""
    count = 10_000
    for number in range(count):
        photo = picture(500, 375, seed=number - number % 100 // 99)
        (tmp_path / f"{number}.jpg").write_bytes(encoded(photo, "JPEG", quality=90 - number % 100 // 99))
    photos = [Photo(tmp_path / f"{number}.jpg", number % 2) for number in range(count)]
    started = time.monotonic()
    found = findings({"training": photos})
    assert time.monotonic() - started < 300
    assert found.class_counts == {"ants": count // 2, "bees": count // 2}
    pairs = {tuple(sorted(int(place.photo.path.stem) for place in pair)) for pair in found.near}
    assert pairs == {(number - 1, number) for number in range(99, count, 100)}


def test_the_search_for_copies_stays_linear_where_all_look_alike() -> None:
    count = 2000
    photos = [Photo(Path(f"{index}.jpg"), 0) for index in range(count)]
    facts = {photo.path: Facts("", photo.path.name, 0xABCD << 100, 64, 64) for photo in photos}
    found = examine({"training": photos}, facts, ("a",))
    assert count - 1 <= len(found.near) <= 8 * 24 * count
