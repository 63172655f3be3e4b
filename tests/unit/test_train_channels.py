"""Channels: which folders count as what, and which photos they hold."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest

from container.contract import SageMakerPaths
from container.errors import DataError
from tests.support import encoded, picture
from train.channels import (
    Channels,
    Contents,
    Photo,
    check_classes,
    check_validation,
    display_names,
    find_channels,
    list_photos,
    split_validation,
    without,
)
from train.doctor import look
from train.sets import spread

PHOTO = encoded(picture(20, 20), "JPEG")


def fill(channel: Path, **classes: int) -> Path:
    for name, count in classes.items():
        (channel / name).mkdir(parents=True)
        for index in range(count):
            (channel / name / f"{index}.jpg").write_bytes(PHOTO)
    return channel


@pytest.fixture
def paths(tmp_path: Path) -> SageMakerPaths:
    return SageMakerPaths(tmp_path)


def configure(paths: SageMakerPaths, **modes: str) -> None:
    paths.config.mkdir(parents=True)
    paths.input_data_config.write_text(json.dumps({name: {"TrainingInputMode": mode} for name, mode in modes.items()}))


@pytest.mark.parametrize(("training", "validation"), [("training", "validation"), ("train", "valid"), ("train", "val")])
def test_the_names_of_channels(paths: SageMakerPaths, training: str, validation: str) -> None:
    for name in (training, validation, "test", "pretrained"):
        paths.channel(name).mkdir(parents=True)
    assert find_channels(paths) == Channels(
        training=paths.channel(training),
        validation=paths.channel(validation),
        test=paths.channel("test"),
        pretrained=paths.channel("pretrained"),
    )


def test_a2_17_where_channels_are_configured_other_folders_are_not_looked_at(paths: SageMakerPaths) -> None:
    configure(paths, training="File")
    for name in ("training", "validation"):
        paths.channel(name).mkdir(parents=True)
    assert find_channels(paths) == Channels(training=paths.channel("training"))


@pytest.mark.parametrize(("nested", "test"), [("", "test"), ("dogImages", "testing")])
def test_one_channel_with_three_folders_counts_as_three(paths: SageMakerPaths, nested: str, test: str) -> None:
    root = paths.channel("training") / nested
    (paths.channel("training") / "__MACOSX" / "dogImages").mkdir(parents=True)  # As macOS packs the dog data set.
    for name in ("train", "valid", test):
        fill(root / name, cats=1, dogs=1)
    found = find_channels(paths)
    assert found == Channels(training=root / "train", validation=root / "valid", test=root / test)


def test_classes_named_like_channels_stay_classes(paths: SageMakerPaths) -> None:
    fill(paths.channel("training"), train=1, bus=1)
    assert find_channels(paths) == Channels(training=paths.channel("training"))


def test_folders_beside_the_three_are_not_used(paths: SageMakerPaths, capsys: pytest.CaptureFixture[str]) -> None:
    """Kaggle's sets have "images to test" there, others annotations."""
    root = paths.channel("training")
    for name in ("train", "val", "images to test"):
        fill(root / name, cats=1, dogs=1)
    assert find_channels(paths) == Channels(training=root / "train", validation=root / "val")
    assert "warning: the folder 'images to test' in" in capsys.readouterr().out


def test_classes_beside_others_that_are_named_like_channels_stay_classes(paths: SageMakerPaths) -> None:
    fill(paths.channel("training"), train=1, test=1, bus=1)
    assert find_channels(paths) == Channels(training=paths.channel("training"))


def test_two_folders_of_one_part_are_refused(paths: SageMakerPaths) -> None:
    for name in ("train", "val", "valid"):
        fill(paths.channel("training") / name, cats=1, dogs=1)
    with pytest.raises(DataError, match=r"folders 'val' and 'valid' in .* both mean validation; keep one"):
        find_channels(paths)


@pytest.mark.parametrize("nested", ["", "dogImages"])
def test_a2_20_hosts_with_parts_of_the_photos_find_the_same_channels(tmp_path: Path, nested: str) -> None:
    first, second, third = hosts = [SageMakerPaths(tmp_path / name) for name in ("first", "second", "third")]
    for host, names in ((first, ("train", "valid")), (second, ("train",)), (third, ("valid", "test"))):
        host.channel("training").mkdir(parents=True)
        for name in names:
            fill(host.channel("training") / nested / name, cats=1, dogs=1)
    seen: list[tuple[Contents, Contents]] = []

    def gather(own: tuple[Contents, Contents]) -> list[tuple[Contents, Contents]]:
        seen.append(own)
        return seen

    for host in hosts:
        find_channels(host, gather=gather)
    for host in hosts:
        root = host.channel("training") / nested
        found = find_channels(host, gather=gather)
        assert found == Channels(training=root / "train", validation=root / "valid", test=root / "test")
    assert list_photos(found, ["cats", "dogs"]).training == (), "the third host has none"


def test_photos_in_no_class_folder_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, cats=1, dogs=1)
    for name in ("1.jpg", "2.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(PHOTO)
    assert len(list_photos(Channels(training=tmp_path)).training) == 2
    assert "warning: 2 photo(s) in" in capsys.readouterr().out


def test_a_channel_beside_the_three_folders_wins(paths: SageMakerPaths) -> None:
    for name in ("train", "valid"):
        fill(paths.channel("training") / name, cats=1, dogs=1)
    paths.channel("validation").mkdir()
    assert find_channels(paths).validation == paths.channel("validation")


def test_a2_18_pipe_mode_fails_at_once(paths: SageMakerPaths) -> None:
    configure(paths, training="Pipe")
    with pytest.raises(DataError, match="Pipe mode"):
        find_channels(paths)


def test_a_missing_training_channel_names_what_was_found(
    paths: SageMakerPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="holds nothing"):
        find_channels(paths)
    paths.channel("trainin").mkdir(parents=True)
    with pytest.raises(DataError, match="found: trainin"):
        find_channels(paths)
    assert "did you mean 'training'?" in capsys.readouterr().out


def test_two_names_of_one_channel_are_refused(paths: SageMakerPaths) -> None:
    for name in ("training", "train"):
        paths.channel(name).mkdir(parents=True)
    with pytest.raises(DataError, match="both mean training"):
        find_channels(paths)


def test_a_configured_channel_without_a_folder_is_an_empty_one(paths: SageMakerPaths) -> None:
    """A host's part of a channel may hold nothing."""
    configure(paths, training="File")
    with pytest.raises(DataError, match=r"holds 0 class folder\(s\) \(none\) in .*training"):
        list_photos(find_channels(paths))


@pytest.mark.parametrize("content", ["{", "[]", '{"training": 1}'])
def test_a_broken_channel_configuration_is_named(paths: SageMakerPaths, content: str) -> None:
    paths.config.mkdir(parents=True)
    paths.input_data_config.write_text(content)
    with pytest.raises(DataError, match=r"inputdataconfig\.json"):
        find_channels(paths)


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["001.Affenpinscher", "002.Afghan_hound"], ("Affenpinscher", "Afghan_hound")),
        (["001.Pug", "002.Pug"], ("001.Pug", "002.Pug")),
        (["001.Pug", "cat"], ("001.Pug", "cat")),
        (["0", "1"], ("0", "1")),
        (["0.5mm", "1.0mm", "2.5cm"], ("0.5mm", "1.0mm", "2.5cm")),
        (["1.A", "1.B", "2.C"], ("1.A", "1.B", "2.C")),
        (["1.Pug", "2.Boxer 2.0"], ("Pug", "Boxer 2.0")),
    ],
)
def test_numbers_before_class_names_are_not_shown(folders: list[str], names: tuple[str, ...]) -> None:
    assert display_names(folders) == names


def test_numbered_folders_keep_their_order(tmp_path: Path) -> None:
    fill(tmp_path, **{"1.a": 1, "10.c": 1, "2.b": 1})
    assert list_photos(Channels(training=tmp_path)).class_names == ("a", "b", "c")


def test_photos_are_found_below_class_folders_and_clutter_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path, cats=1, dogs=1)
    fill(tmp_path / "cats", deeper=1)
    (tmp_path / "cats" / "notes.txt").write_text("x")
    for clutter in ("._0.jpg", ".DS_Store"):
        (tmp_path / "cats" / clutter).write_text("x")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    fill(tmp_path / "cats", **{".ipynb_checkpoints": 1})
    fill(tmp_path / "__MACOSX", **{"._cats": 1})
    photos = list_photos(Channels(training=tmp_path)).training
    assert [(photo.path.name, photo.label) for photo in photos] == [("0.jpg", 0), ("0.jpg", 0), ("0.jpg", 1)]
    assert "notes.txt" in capsys.readouterr().out


@pytest.mark.parametrize("classes", [{}, {"cats": 1}])
def test_fewer_than_two_classes_are_refused(tmp_path: Path, classes: dict[str, int]) -> None:
    fill(tmp_path, **classes)
    with pytest.raises(DataError, match=rf"{len(classes)} class folder.*at least 2"):
        list_photos(Channels(training=tmp_path))


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    fill(tmp_path, cats=1, dogs=0)
    with pytest.raises(DataError, match=r"without a readable photo \(dogs\)"):
        check_classes(("cats", "dogs"), {0})
    assert {photo.label for photo in list_photos(Channels(training=tmp_path)).training} == {0}


def test_unreadable_photos_are_left_out_and_may_empty_a_class(tmp_path: Path) -> None:
    fill(tmp_path, cats=2, dogs=2)
    (tmp_path / "cats" / "0.jpg").write_bytes(PHOTO[:-200])
    (tmp_path / "cats" / "no.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    sets = list_photos(Channels(training=tmp_path))
    facts = look([photo.path for photo in sets.training])
    faults = {path: fact.fault for path, fact in facts.items() if fact.fault}
    assert {path.name: reason.split(":")[0] for path, reason in faults.items()} == {
        "0.jpg": "the photo is damaged or truncated",
        "no.heic": "HEIC and AVIF photos are not read; send JPEG, PNG or WebP",
    }
    assert len(without(sets, faults).training) == 3
    left = without(sets, {*faults, tmp_path / "cats" / "1.jpg"})
    assert {photo.label for photo in left.training} == {1}
    with pytest.raises(DataError, match="holds no photos"):
        check_classes(sets.class_names, ())


def test_other_channels_may_hold_fewer_classes_but_no_others(tmp_path: Path) -> None:
    training = fill(tmp_path / "a", **{"001.cats": 1, "002.dogs": 1})
    test = fill(tmp_path / "b", dogs=2)
    photos = list_photos(Channels(training=training, test=test)).test
    assert [photo.label for photo in photos] == [1, 1]
    with pytest.raises(DataError, match=r"training does not have \(fish\)"):
        list_photos(Channels(training=training, validation=fill(tmp_path / "c", fish=1)))


def test_names_that_are_no_utf8_do_for_photos_but_not_for_classes(tmp_path: Path) -> None:
    """Archives from Windows may hold Latin-1 names."""
    fill(tmp_path, cats=4, dogs=4)
    odd = tmp_path / "cats" / os.fsdecode(b"\xe9t\xe9.jpg")
    odd.write_bytes(PHOTO)
    sets = split_validation(list_photos(Channels(training=tmp_path)), seed=0)
    assert odd in {photo.path for photo in (*sets.training, *sets.validation)}
    fill(tmp_path, **{os.fsdecode(b"chats \xe9gar\xe9s"): 1})
    with pytest.raises(DataError, match="not UTF-8; rename it"):
        list_photos(Channels(training=tmp_path))


def test_the_split_is_stratified_and_depends_on_the_seed_alone(tmp_path: Path) -> None:
    listed = list_photos(Channels(training=fill(tmp_path, a=20, b=10, c=1)))
    sets = split_validation(listed, seed=1)
    assert [sum(photo.label == label for photo in sets.validation) for label in range(3)] == [4, 2, 0]
    assert not set(sets.training) & set(sets.validation)
    assert set(sets.training) | set(sets.validation) == set(listed.training)
    assert sets == split_validation(listed, seed=1)
    assert sets != split_validation(listed, seed=2)


def test_nothing_to_validate_with_is_an_error(tmp_path: Path) -> None:
    sets = split_validation(list_photos(Channels(training=fill(tmp_path, a=1, b=1))), seed=0)
    with pytest.raises(DataError, match="single photo"):
        check_validation(len(sets.validation))


@pytest.mark.parametrize("count", [1, 63, 64, 65, 127, 1000])
def test_some_photos_stand_for_all_of_them(count: int) -> None:
    photos = [Photo(Path(f"{index}.jpg"), 0) for index in range(count)]
    some = [int(photo.path.stem) for photo in spread(photos, 64)]
    assert len(some) == min(count, 64)
    gaps = [after - before for before, after in pairwise([*some, count])]
    assert some[0] == 0
    assert max(gaps) - min(gaps) <= 1
