"""Two containers on a docker network are two training hosts, and know each other by resourceconfig.json alone."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from container.artifact import MANIFEST, load_manifest, verify_files
from container.contract import SageMakerPaths
from tests.containers import Container, Engine
from tests.support import wait_until
from tests.training import SMALL, arguments, write_digits

pytestmark = [pytest.mark.image, pytest.mark.slow]

HOSTS = ("algo-1", "algo-2")
QUICK = {**SMALL, "batch_size": "8", "workers": "0"}


@pytest.fixture
def network(engine: Engine) -> Iterator[str]:
    name = f"kennel-test-{uuid.uuid4().hex[:12]}"
    engine("network", "create", "--internal", name)
    yield name
    engine("network", "rm", name)


def tree(base: Path, host: str) -> SageMakerPaths:
    paths = SageMakerPaths(base / host)
    write_digits(paths.channel("training"), per_class=12)
    for folder in (paths.config, paths.model, paths.output_data, paths.checkpoints):
        folder.mkdir(parents=True)
    # As version 3 of the SDK's local mode writes it: the interface does not exist.
    resources = {"current_host": host, "hosts": list(HOSTS), "network_interface_name": "ethwe"}
    paths.resource_config.write_text(json.dumps(resources))
    return paths


@contextlib.contextmanager
def job(engine: Engine, network: str, trees: list[SageMakerPaths], *words: str) -> Iterator[list[Container]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                engine.started(
                    "train",
                    *words,
                    # The container's own host name says nothing, as on SageMaker.
                    options=(
                        *("--network", network, "--network-alias", host, "--hostname", "aws"),
                        *("--volume", f"{paths.base}:/opt/ml"),
                    ),
                )
            )
            for host, paths in zip(HOSTS, trees, strict=True)
        ]


@pytest.mark.timeout(600)
def test_two_hosts_stopped_together_leave_one_valid_artifact(engine: Engine, network: str, tmp_path: Path) -> None:
    trees = [tree(tmp_path, host) for host in HOSTS]
    with job(engine, network, trees, *arguments({**QUICK, "epochs": "500"})) as (one, two):
        wait_until(lambda: "validation:accuracy=" in one.logs() or None, timeout_s=240, what="the first epoch")
        engine("kill", "--signal", "TERM", two.name)  # Any host may be told; all stop at the same step.
        codes = [one.wait(), two.wait()]
        assert codes == [0, 0], one.logs() + two.logs()
    verify_files(trees[0].model, load_manifest(trees[0].model))
    assert not (trees[1].model / MANIFEST).exists()


@pytest.mark.timeout(600)
def test_an_error_on_one_host_ends_both_with_its_message(engine: Engine, network: str, tmp_path: Path) -> None:
    trees = [tree(tmp_path, host) for host in HOSTS]
    trees[0].channel("pretrained").mkdir()
    trees[1].channel("pretrained").mkdir()
    with job(engine, network, trees, *arguments({**QUICK, "pretrained": "true"})) as hosts:
        assert [host.wait() for host in hosts] == [1, 1]
    for paths in trees:
        assert "channel 'pretrained' must hold one state dict" in paths.failure.read_text()
