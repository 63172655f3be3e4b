"""`loadtest` against a server that really runs, and what it computes from the rounds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import loadtest
from deploy.errors import DeployError
from deploy.loadtest import Round, Send
from deploy.pricing import provisioned_month
from deploy.profile import Endpoint
from deploy.sizing import size
from tests.aws.conftest import Run
from tests.containers import Engine, serving
from tests.serving import PHOTO, Server, running_server, write_artifact
from tests.support import free_port, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`python -m serve` with a tiny network."""
    base = tmp_path_factory.mktemp("serving")
    write_artifact(base / "model")
    with running_server(base) as running:
        yield running


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "photo.jpg"
    file.write_bytes(PHOTO)
    return file


def test_a_running_server_is_measured(run: Run, server: Server, photo: Path) -> None:
    url = f"http://127.0.0.1:{server.port}"
    answer = run("loadtest", photo, "--url", url, "--seconds", 0.5, "--latency-ms", 20_000, "--peak", 20)
    assert answer.code == 0, answer.error
    rounds = [line for line in answer.output.splitlines() if " clients  " in line]
    assert rounds
    assert "endpoint.scaling_target = " in answer.output
    assert "instances at the peak = " in answer.output
    assert "if the peak lasted all month: $" in answer.output


@pytest.fixture
def send(server: Server) -> Iterator[Send]:
    with loadtest.to_container(f"http://127.0.0.1:{server.port}") as found:
        yield found


def test_a_round_counts_what_the_server_counts(server: Server, send: Send) -> None:
    """Our count of answers beside the server's own access log."""
    before = _served(server)
    found = loadtest.measure(send, [PHOTO], clients=2, seconds=1)
    assert found.errors == 0
    wait_until(lambda: _served(server) - before >= found.requests, timeout_s=10, what="the server's last log lines")
    assert found.requests == _served(server) - before
    assert 0 < found.p50_ms <= found.p99_ms


def _served(server: Server) -> int:
    return sum("/invocations" in line.values() for line in server.lines())


def test_refused_requests_are_errors(send: Send) -> None:
    found = loadtest.measure(send, [b"not a photo"], clients=1, seconds=0.3)
    assert found.errors == found.requests > 0
    with pytest.raises(DeployError, match="no load fits 2000 ms"):
        loadtest.run(send, [b"not a photo"], bound_ms=2000, seconds=0.2, say=lambda _: None)


def test_a_bound_that_nothing_keeps_is_a_sentence(send: Send) -> None:
    with pytest.raises(DeployError, match="with one client p99 is"):
        loadtest.run(send, [PHOTO], bound_ms=0.001, seconds=0.2, say=lambda _: None)


def test_a_folder_of_any_photos_that_are_served_will_do(run: Run, tmp_path: Path) -> None:
    (tmp_path / "dog.TIFF").write_bytes(b"x")
    answer = run("loadtest", tmp_path, "--url", "http://127.0.0.1:9", "--plan")
    assert answer.code == 0, answer.error


def test_nobody_at_the_address_is_a_sentence(run: Run, photo: Path) -> None:
    answer = run("loadtest", photo, "--url", f"http://127.0.0.1:{free_port()}")
    assert "/ping does not answer 200" in answer.error


@pytest.mark.image
def test_a_container_is_measured(engine: Engine, run: Run, photo: Path, tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    with serving(engine, tmp_path / "model") as server:
        answer = run("loadtest", photo, "--url", server.url, "--seconds", 0.5, "--latency-ms", 20_000)
    assert answer.code == 0, answer.error
    assert "holds " in answer.output


def _round(clients: int, requests_per_s: float, p99_ms: float, errors: int = 0) -> Round:
    return Round(clients, requests=100, errors=errors, requests_per_s=requests_per_s, p50_ms=p99_ms / 2, p99_ms=p99_ms)


def test_the_best_round_within_the_bound_wins() -> None:
    """More clients give more answers, then only longer waits; what comes after the bound is not looked at."""
    rounds = iter([_round(1, 20, 50), _round(2, 35, 60), _round(4, 34, 120), _round(8, 90, 300), _round(16, 99, 10)])
    seen: list[Round] = []
    best = loadtest.best_within(rounds, bound_ms=200, say=seen.append)
    assert (best.clients, best.requests_per_s) == (2, 35)
    assert [one.clients for one in seen] == [1, 2, 4, 8]


def test_a_round_with_errors_is_not_held() -> None:
    best = loadtest.best_within([_round(1, 20, 50), _round(2, 35, 60, errors=1)], bound_ms=200, say=lambda _: None)
    assert best.clients == 1


FOUND = Round(clients=4, requests=1000, errors=0, requests_per_s=34.7, p50_ms=100, p99_ms=300)


def test_sizing_follows_from_the_round() -> None:
    sizing = size(FOUND, peak_per_s=40, endpoint=Endpoint(instance_type="ml.m5.large"))
    assert sizing.scaling_target == int(34.7 * 0.5 * 60)
    assert sizing.instances == 3  # 40 / (34.7 x 0.5) = 2.3
    assert sizing.provisioned_concurrency == 4  # 40 x 0.1 s
    assert sizing.reserved_concurrency == 24  # 2 x 40 x 0.3 s
    assert sizing.endpoint_dollars == pytest.approx(3 * 0.115 * 730)
    calls = 40 * 730 * 3600
    run = calls * (0.0000002 + 0.1 * 0.5 * 0.0000097222)
    assert sizing.function_dollars == pytest.approx(provisioned_month(4) + run)


def test_an_asynchronous_endpoint_is_scaled_by_what_waits() -> None:
    """Its metric is the backlog an instance (app.yaml): a minute's work, and instances that are busy all of it."""
    sizing = size(FOUND, peak_per_s=40, endpoint=Endpoint(variant="async", instance_type="ml.m5.large"))
    assert sizing.scaling_target == int(34.7 * 60)
    assert sizing.instances == 2  # 40 / 34.7 = 1.2


def test_a_machine_without_a_price_leaves_the_bill_open() -> None:
    assert size(FOUND, peak_per_s=1, endpoint=Endpoint(instance_type="ml.unknown")).endpoint_dollars is None


def test_a_serverless_endpoint_is_sized_in_concurrency_and_billed_by_the_second() -> None:
    sizing = size(FOUND, peak_per_s=40, endpoint=Endpoint(variant="serverless", serverless_memory_mb=2048))
    assert (sizing.instances, sizing.scaling_target) == (None, None)
    assert sizing.serverless_concurrency == 12  # 40 x 0.3 s
    assert sizing.endpoint_dollars == pytest.approx(40 * 730 * 3600 * 0.1 * 2 * 0.00002)


@pytest.mark.parametrize(("share", "expected"), [(50, 2.0), (99, 4.0), (1, 1.0), (100, 4.0)])
def test_percentiles_are_of_the_nearest_rank(share: float, expected: float) -> None:
    assert loadtest.percentile([1.0, 2.0, 3.0, 4.0], share) == expected
