"""Memory admission of the multi-model mode, where no process is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from container.errors import OutOfMemoryError
from serve.control import Fleet
from serve.front import FrontConfig, FrontRuntime
from serve.mms import MmsPlace
from serve.models import Models, memory_for_models
from serve.shape import model_mib
from tests.serving import write_artifact


def test_a7_68_too_little_memory_is_507_with_the_figures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write_artifact(tmp_path / "models" / "one" / "model")
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
    )
    models = Models(
        folder=tmp_path / "models",
        memory_mib=model_mib(0) - 1,
        workers=1,
        on_gpu=False,
        settings={},
        place=MmsPlace(folder=tmp_path, inference="unix:/nowhere", management="unix:/nowhere"),
        fleet=Fleet(work_s=1),
        front=FrontRuntime(front),
        load_timeout_s=1,
        drain_timeout_s=1,
    )
    for _ in range(2):
        with pytest.raises(OutOfMemoryError, match=r"needs \d+ MiB .* 0 other models take 0 of \d+ MiB") as caught:
            models.load("one", str(tmp_path / "models" / "one" / "model"))
        assert caught.value.status == 507
    assert models.list("", "") == {"models": []}


def test_what_models_may_take_is_the_rest_of_the_limit() -> None:
    assert memory_for_models(4096 * 1024**2, 1200) == 2896
