"""How much an endpoint or a container holds: requests a second within a latency bound, found by raising the load."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from deploy import endpoint
from deploy.aws import Aws
from deploy.errors import AwsError, DeployError

# Sends one photo; returns whether it was answered.
Send = Callable[[bytes], bool]
_CLIENTS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Round:
    """One load: `clients` callers, each sending its next photo when the last is answered."""

    clients: int
    requests: int
    errors: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float

    def within(self, bound_ms: float) -> bool:
        return self.p99_ms <= bound_ms and self.errors == 0


def run(send: Send, photos: Sequence[bytes], *, bound_ms: float, seconds: float, say: Callable[[Round], None]) -> Round:
    """Raise the number of clients until the bound breaks; the best round within it.

    Raises DeployError where not even one client is served within the bound.
    """
    rounds = (measure(send, photos, clients=clients, seconds=seconds) for clients in _CLIENTS)
    return best_within(rounds, bound_ms=bound_ms, say=say)


def best_within(rounds: Iterable[Round], *, bound_ms: float, say: Callable[[Round], None]) -> Round:
    """Of the rounds up to the first that breaks the bound, the one with the most requests a second."""
    kept: list[Round] = []
    for found in rounds:
        say(found)
        if not found.within(bound_ms):
            break
        kept.append(found)
    if not kept:
        raise DeployError(
            f"with one client p99 is {found.p99_ms:.0f} ms with {found.errors} errors: no load fits {bound_ms:g} ms; "
            "raise --latency-ms, or take a faster machine"
        )
    return max(kept, key=lambda one: one.requests_per_s)


def measure(send: Send, photos: Sequence[bytes], *, clients: int, seconds: float) -> Round:
    """One round of `seconds` with that many clients."""
    order, lock = itertools.cycle(photos), threading.Lock()
    begin = time.perf_counter()

    def client() -> tuple[list[float], int]:
        times, errors = [], 0
        while (start := time.perf_counter()) < begin + seconds:
            with lock:
                photo = next(order)
            errors += not send(photo)
            times.append((time.perf_counter() - start) * 1000)
        return times, errors

    with ThreadPoolExecutor(clients) as pool:
        results = [future.result() for future in [pool.submit(client) for _ in range(clients)]]
    elapsed = time.perf_counter() - begin
    times = sorted(itertools.chain.from_iterable(found for found, _ in results))
    errors = sum(count for _, count in results)
    return Round(clients, len(times), errors, len(times) / elapsed, percentile(times, 50), percentile(times, 99))


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of sorted values."""
    return ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)]


@contextmanager
def to_container(url: str) -> Iterator[Send]:
    """To a container's own port, e.g. http://127.0.0.1:8080. Raises DeployError where its /ping is not 200."""
    limits = httpx.Limits(max_connections=max(_CLIENTS))
    with httpx.Client(base_url=url, timeout=70, trust_env=False, limits=limits) as client:

        def send(photo: bytes) -> bool:
            headers = {"Content-Type": "application/x-image"}
            try:
                return client.post("/invocations", content=photo, headers=headers).is_success
            except httpx.HTTPError:
                return False

        try:
            client.get("/ping").raise_for_status()
        except httpx.HTTPError as error:
            where = f"{url}/ping does not answer 200 ({error})"
            raise DeployError(f"{where}: is the container up and its model loaded?") from error
        yield send


@contextmanager
def to_endpoint(aws: Aws, *, model: str = "") -> Iterator[Send]:
    """To the profile's endpoint, through AWS. What the laptop's own network adds is in the figures.

    Raises DeployError for an asynchronous endpoint, which answers whenever it comes to it.
    """
    if aws.profile.endpoint.variant == "async":
        raise DeployError("an asynchronous endpoint queues what it is sent: load-test its container with --url")
    aws.client("sagemaker-runtime")

    def send(photo: bytes) -> bool:
        try:
            endpoint.invoke(aws, photo, model=model)
        except AwsError:
            return False
        return True

    yield send
