"""Admission in multi-model mode, where no process is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from container.artifact import load_manifest
from container.errors import OutOfMemoryError
from serve.control import Fleet, WorkerState
from serve.front import FrontConfig, FrontRuntime
from serve.machine import MIB
from serve.mms import MmsPlace
from serve.models import ModelNotFoundError, Models, memory_for_models
from serve.shape import loading_mib, model_mib
from tests.serving import write_artifact


def unstarted(tmp_path: Path, *, memory_mib: int) -> Models:
    front = FrontConfig(
        port=1,
        folder=tmp_path,
        mms="",
        control="",
        slots=1,
        large_bodies=1,
        queue_length=1,
        most_bodies=1,
        max_connections=1,
        max_payload_bytes=1,
        queue_s=1,
        work_s=1,
        load_s=1,
    )
    return Models(
        folder=tmp_path / "models",
        memory_mib=memory_mib,
        workers=1,
        on_gpu=False,
        settings={},
        place=MmsPlace(folder=tmp_path, inference="unix:/nowhere", management="unix:/nowhere"),
        fleet=Fleet(work_s=1),
        front=FrontRuntime(front),
        load_timeout_s=1,
        drain_timeout_s=1,
    )


def test_a7_68_too_little_memory_is_507_with_the_figures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write_artifact(tmp_path / "models" / "one" / "model")
    models = unstarted(tmp_path, memory_mib=model_mib(0) - 1)
    for _ in range(2):
        with pytest.raises(OutOfMemoryError, match=r"needs \d+ MiB .* 0 other models take 0 of \d+ MiB") as caught:
            models.load("one", str(tmp_path / "models" / "one" / "model"))
        assert caught.value.status == 507
    assert models.list("", "") == {"models": []}


def test_a7_68_models_that_load_at_once_must_fit_beside_each_other_while_they_do(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "one" / "model"
    size = 10 * MIB
    write_artifact(folder, b"x" * size)
    models = unstarted(tmp_path, memory_mib=2 * model_mib(size) + loading_mib(size))
    assert models._reserve("one", load_manifest(folder)) == model_mib(size)
    with pytest.raises(OutOfMemoryError, match="1 other models take"):
        models._reserve("two", load_manifest(folder))


def test_a7_69_unloading_what_is_not_there_leaves_nothing_behind(tmp_path: Path) -> None:
    models = unstarted(tmp_path, memory_mib=1)
    with pytest.raises(ModelNotFoundError):
        models.unload("x" * 60_000)
    assert not models._busy


def test_an_end_that_was_asked_for_is_no_loss_and_a_forgotten_model_has_no_past() -> None:
    fleet = Fleet(work_s=1)
    for pid, model in ((1, "one"), (2, "one"), (3, "two")):
        fleet.add(WorkerState(model=model, pid=pid, parent=0))
    fleet.failures["one"] = "half a network"
    fleet.remove(1)
    fleet.dismiss("one")
    fleet.remove(2)
    fleet.remove(3)
    assert fleet.ended == 2
    assert fleet.forget("one") == [1, 2]
    assert not fleet.failures
    assert not fleet.dismissed


def test_what_models_may_take_is_the_rest_of_the_limit() -> None:
    assert memory_for_models(4096 * 1024**2, 1200) == 2896
