"""Two containers on a docker network are two training hosts, and know each other by resourceconfig.json alone."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from container.artifact import MANIFEST, load_manifest, verify_files
from container.contract import SageMakerPaths
from tests.containers import Container, Engine
from tests.support import wait_until
from tests.training import SMALL, arguments, write_digits
from train.model import build_resnet

pytestmark = [pytest.mark.image, pytest.mark.slow]

HOSTS = ("algo-1", "algo-2")
QUICK = {**SMALL, "batch_size": "8", "workers": "0"}


@pytest.fixture
def network(engine: Engine) -> Iterator[str]:
    name = f"kennel-test-{uuid.uuid4().hex[:12]}"
    engine("network", "create", "--internal", name)
    yield name
    engine("network", "rm", name)


def tree(base: Path, host: str, hosts: Sequence[str] = HOSTS) -> SageMakerPaths:
    paths = SageMakerPaths(base / host)
    write_digits(paths.channel("training"), per_class=12)
    for folder in (paths.config, paths.model, paths.output_data, paths.checkpoints):
        folder.mkdir(parents=True)
    # As version 3 of the SDK's local mode writes it: the interface does not exist.
    resources = {"current_host": host, "hosts": list(hosts), "network_interface_name": "ethwe"}
    paths.resource_config.write_text(json.dumps(resources))
    return paths


@contextlib.contextmanager
def job(engine: Engine, network: str, trees: list[SageMakerPaths], *words: str) -> Iterator[list[Container]]:
    """A container for each tree, each a host of its own."""
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
            for host, paths in zip(HOSTS, trees, strict=False)
        ]


@pytest.mark.timeout(600)
def test_two_hosts_stopped_together_leave_one_valid_artifact(engine: Engine, network: str, tmp_path: Path) -> None:
    trees = [tree(tmp_path, host) for host in HOSTS]
    with job(engine, network, trees, *arguments({**QUICK, "epochs": "500"})) as (one, two):
        wait_until(lambda: "validation:accuracy=" in one.logs() or None, timeout_s=240, what="the first epoch")
        asked = time.monotonic()
        engine("kill", "--signal", "TERM", two.name)  # Any host may be told; all stop at the same step.
        codes = [one.wait(), two.wait()]
        assert codes == [0, 0], one.logs() + two.logs()
        assert time.monotonic() - asked < 90
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


STEPS = 20


def figures(logs: str, metric: str) -> list[float]:
    return [float(value) for value in re.findall(rf"^{metric}=([0-9.]+)$", logs, re.MULTILINE)]


@pytest.mark.timeout(900)
def test_two_hosts_compute_what_one_does_with_twice_the_batch(engine: Engine, network: str, tmp_path: Path) -> None:
    """Epochs of one step each: their losses are the steps'. BatchNorm is frozen in both, as it is with any weights."""
    pretrained = tmp_path / "resnet18.pth"
    torch.manual_seed(0)
    torch.save(build_resnet("resnet18", 1000).state_dict(), pretrained)
    alone, pair = [tree(tmp_path / "alone", HOSTS[0], HOSTS[:1])], [tree(tmp_path / "pair", host) for host in HOSTS]
    logs: list[str] = []
    for trees, batch in ((alone, "32"), (pair, "16")):
        for paths in trees:
            paths.channel("pretrained").mkdir()
            shutil.copy(pretrained, paths.channel("pretrained"))
        words = {**QUICK, "pretrained": "true", "strategy": "full", "batch_size": batch, "epochs": str(STEPS)}
        words |= {"precision": "float32", "patience": "0", "report": "false", "learning_rate": "0.0001"}
        with job(engine, network, trees, *arguments(words)) as hosts:
            assert [host.wait(timeout_s=300) for host in hosts] == [0] * len(trees), "".join(h.logs() for h in hosts)
            logs.append(hosts[0].logs())
    one, two = logs
    for metric in ("train:loss", "validation:loss", "validation:accuracy"):
        assert len(figures(one, metric)) == STEPS
        assert figures(two, metric) == pytest.approx(figures(one, metric), abs=1e-4), metric
    assert "all 2 processes hold the same weights" in two
    verify_files(pair[0].model, load_manifest(pair[0].model))


@pytest.mark.timeout(600)
def test_a_process_that_fails_in_the_middle_ends_both_hosts_with_its_message(
    engine: Engine, network: str, tmp_path: Path
) -> None:
    trees = [tree(tmp_path, host) for host in HOSTS]
    with job(engine, network, trees, *arguments({**QUICK, "epochs": "500", "report": "false"})) as hosts:
        wait_until(lambda: "validation:accuracy=" in hosts[0].logs() or None, timeout_s=240, what="the first epoch")
        shutil.rmtree(trees[1].channel("training"))
        assert [host.wait() for host in hosts] == [1, 1]
    for paths in trees:
        failure = paths.failure.read_text()
        assert failure.startswith("FileNotFoundError: "), failure
        assert failure.endswith("(rank 1, host algo-2)")


@pytest.mark.timeout(600)
def test_a_host_that_never_comes_is_named_by_the_one_that_waits(engine: Engine, network: str, tmp_path: Path) -> None:
    paths = tree(tmp_path, HOSTS[0])
    with engine.started(
        "train",
        *arguments(QUICK),
        options=(
            *("--network", network, "--network-alias", HOSTS[0], "--volume", f"{paths.base}:/opt/ml"),
            *("--env", "KENNEL_HOST_WAIT_SECONDS=5"),
        ),
    ) as waiting:
        assert waiting.wait() == 1
    assert paths.failure.read_text().startswith("waited 5 s in vain for host(s) algo-2")
