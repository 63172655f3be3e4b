"""Serving: ours beside torch eager behind multi-model-server and the bare engine, in one run, as ratios.

Requests over loopback with ResNet-50 and JPEGs of 500 x 375, one configuration of ours against the usual way's best
for each row. Photos of your own with KENNEL_PHOTOS=folder. About twelve minutes on two cores that do nothing else.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import socket
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from container.artifact import load_manifest
from serve.config import ServeConfig
from serve.machine import MIB, Machine
from serve.options import Options
from serve.predictor import Predictor
from serve.shape import choose_multi_model_shape, loading_mib, model_mib
from tests.benchmarks import load, networks, usual
from tests.benchmarks.table import Effort, Table
from tests.serving import Server, starting_server
from tests.support import wait_until


class Measured(NamedTuple):
    """Of one server: loads of one and eight clients, the large photo, memory of the workers, the first answer, and CPU
    time of a request at eight clients, which other programs on the machine change least.
    """

    one_p50_ms: float
    eight_per_s: float
    eight_p50_ms: float
    eight_p99_ms: float
    large_p50_ms: float
    memory_mib: float
    start_s: float
    cpu_ms: float


Rounds = dict[str, list[Measured]]
# Requests/s of ours and photos/s of the bare engine, one right after the other.
Pair = tuple[float, float]

# A shared machine's speed changes within seconds: many short turns of both sides, here of each round.
_TURNS = 5
_TURN_S = 3.0

_predictor: Predictor  # A bare engine's process has one.


def serving(table: Table, effort: Effort) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        run(Path(scratch), table, effort)


def run(scratch: Path, table: Table, effort: Effort) -> None:
    photos, large = networks.photos(500, 375, 16), networks.photos(4000, 3000, 2)
    model = networks.build("resnet50", scratch / "resnet50.pth")
    networks.write_float32(model, "resnet50", scratch / "float32" / "model")
    networks.write_int8(model, "resnet50", scratch / "int8" / "model", photos)
    folder = usual.model_folder(scratch / "resnet50.pth", scratch / "usual")
    ours: Rounds = defaultdict(list)
    others: Rounds = defaultdict(list)
    pairs: dict[str, list[Pair]] = defaultdict(list)
    seconds = effort.seconds / effort.repeat
    # In turns, so that a machine that slows down meanwhile slows all.
    for _ in range(effort.repeat):
        for workers, threads in ((1, 2), (2, 1)):
            with usual.running([folder], "resnet50", workers=workers, threads=threads) as server:
                found = measure(server.port, server.process.pid, photos, large, seconds)
            _keep(others, f"usual way, {workers} worker(s) of {threads} thread(s)", found)
        for precision in ("float32", "int8"):
            with starting_server(scratch / precision) as server_of_ours:
                found = measure(server_of_ours.port, server_of_ours.process.pid, photos, large, seconds)
                pairs[precision] += beside_bare(server_of_ours.port, scratch / precision / "model", photos)
            _keep(ours, precision, found)
    report(table, _medians(ours), [*_medians(others).values()])
    for precision, found_pairs in pairs.items():
        mine, bare = sorted(found_pairs, key=lambda pair: pair[0] / pair[1])[len(found_pairs) // 2]
        figure = f"requests/s against the bare engine, {precision}, the median pair"
        table.add(figure, ours=mine, other=bare, unit="/s", target=0.92)
    slow_uploads(scratch / "int8", table, photos, effort.seconds)
    density(scratch, table, photos[0])


def _keep(rounds: Rounds, name: str, found: Measured) -> None:
    print(f"{name}: {found}", flush=True)
    rounds[name].append(found)


def _medians(rounds: Rounds) -> dict[str, Measured]:
    """Of each figure."""
    return {name: Measured(*map(median, zip(*found, strict=True))) for name, found in rounds.items()}


def report(table: Table, ours: dict[str, Measured], others: list[Measured]) -> None:
    """The rows of throughput, latency, memory and start: each against the usual way's best for that row."""
    int8, float32 = ours["int8"], ours["float32"]
    best_rate = max(other.eight_per_s for other in others)
    for name, mine, target in (("int8", int8, 2.65), ("float32", float32, 1.45)):
        figure = f"requests/s at 8 clients, {name}"
        table.add(figure, ours=mine.eight_per_s, other=best_rate, unit="/s", target=target, essential=True)
    lower = partial(table.add, smaller=True, essential=True)
    one = min(other.one_p50_ms for other in others)
    lower("p50 at one client, int8", ours=int8.one_p50_ms, other=one, unit="ms", target=2.4)
    for name, mine in ours.items():
        table.add(f"p99/p50 at 8 clients, {name}", ours=mine.eight_p99_ms / mine.eight_p50_ms, unit="", limit=1.5)
    large = min(other.large_p50_ms for other in others)
    lower("12-megapixel photo, int8", ours=int8.large_p50_ms, other=large, unit="ms", target=3)
    memory = min(other.memory_mib for other in others)
    lower("memory of all workers, int8", ours=int8.memory_mib, other=memory, unit="MiB", target=4)
    start = min(other.start_s for other in others)
    lower("start to first answer, int8", ours=int8.start_s, other=start, unit="s", target=2.5)


def measure(port: int, pid: int, photos: list[bytes], large: list[bytes], seconds: float) -> Measured:
    """All figures of one server that has just been started."""
    started = time.monotonic()
    wait_until(lambda: answers(port, photos[0]), timeout_s=120, what="the first answer")
    start_s = time.monotonic() - started
    one = load.run(port, photos, clients=1, seconds=seconds)
    before = cpu_s(pid)
    eight = load.run(port, photos, clients=8, seconds=seconds)
    cpu_ms = 1000 * (cpu_s(pid) - before) / eight.statuses.total()
    return Measured(
        one_p50_ms=1000 * one.p50,
        eight_per_s=eight.requests_per_s,
        eight_p50_ms=1000 * eight.p50,
        eight_p99_ms=1000 * eight.p99,
        large_p50_ms=1000 * load.run(port, large, clients=1, seconds=seconds).p50,
        memory_mib=python_memory_mib(pid),
        start_s=start_s,
        cpu_ms=cpu_ms,
    )


def answers(port: int, photo: bytes, path: str = "/invocations") -> bool:
    with contextlib.suppress(OSError):
        return load.once(port, photo, path) == 200
    return False


def python_memory_mib(root: int) -> float:
    """Sum of PSS of the Python processes below Java: the workers, and what starts them."""
    return sum(pss_mib(pid) for pid in descendants(root) if "worker" in command(pid))


def descendants(root: int) -> Iterator[int]:
    for path in Path(f"/proc/{root}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            yield child
            yield from descendants(child)


def cpu_s(root: int) -> float:
    """CPU time that a process and all below it have used."""
    ticks = 0
    for pid in (root, *descendants(root)):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def pss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no Pss in smaps_rollup")


def beside_bare(port: int, artifact: Path, photos: list[bytes]) -> list[Pair]:
    """A server that has been under load, in turns with the bare engine; whoever's turn it is not does nothing."""
    with bare_engine(artifact, photos) as rate:
        pairs = [
            (load.run(port, photos, clients=8, seconds=_TURN_S).requests_per_s, rate(_TURN_S)) for _ in range(_TURNS)
        ]
    print(
        "ours, bare:", *(f"{mine:.1f} {bare:.1f} ({mine / bare:.2f})" for mine, bare in pairs), sep="\n  ", flush=True
    )
    return pairs


@contextlib.contextmanager
def bare_engine(artifact: Path, photos: list[bytes]) -> Iterator[Callable[[float], float]]:
    """Photos a second of one process a core, each with one thread, decoding as the server does."""
    cores = len(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(cores, _load, (artifact,)) as pool:

        def rate(seconds: float) -> float:
            return sum(pool.starmap(_loop, [(photos, seconds)] * cores))

        rate(5)  # Until all are there.
        yield rate


def _load(artifact: Path) -> None:
    global _predictor
    _predictor = Predictor.load(artifact, threads=1)


def _loop(photos: list[bytes], seconds: float) -> float:
    started, count = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        _predictor.predict(photos[count % len(photos)], Options())
        count += 1
    return count / (time.monotonic() - started)


def slow_uploads(base: Path, table: Table, photos: list[bytes], seconds: float) -> None:
    """p99 of four clients beside fifty uploads of 5 MB that trickle in at 10 kB/s, and without them."""
    with starting_server(base) as server:
        wait_until(partial(answers, server.port, photos[0]), timeout_s=120, what="the first answer")
        alone = load.run(server.port, photos, clients=4, seconds=seconds)
        with trickling(server.port, clients=50):
            beside = load.run(server.port, photos, clients=4, seconds=seconds)
    figure = "p99 beside 50 slow uploads (at most twice that without)"
    table.add(figure, ours=1000 * beside.p99, limit=2000 * alone.p99, unit="ms")


@contextlib.contextmanager
def trickling(port: int, *, clients: int) -> Iterator[None]:
    """Uploads that never end, each begun again when the server gives it up."""
    stop = threading.Event()
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 5000000\r\n\r\n"

    def upload() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(head)
                while not stop.wait(0.1):
                    client.sendall(b"x" * 1000)

    threads = [threading.Thread(target=upload) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def density(scratch: Path, table: Table, photo: bytes) -> None:
    """How many ResNet-18 fit in 4 GB: from the memory of a few, beside what the server takes without them.

    Of ours, no more are counted than its plan of memory lets in.
    """
    model = networks.build("resnet18", scratch / "resnet18.pth")
    for name in ("0", "1", "2"):
        networks.write_int8(model, "resnet18", scratch / "many" / "models" / name / "model", [photo])
    with starting_server(scratch / "many", SAGEMAKER_MULTI_MODEL="true") as server:
        wait_until(server.ready, timeout_s=60, what="/ping to say 200")
        for name in ("0", "1", "2"):
            load_and_ask(server, name, str(scratch / "many" / "models" / name / "model"), photo)
        ours = min(fitting(server.process.pid, models=3), let_in(scratch / "many" / "models" / "0" / "model"))
    folders = [usual.model_folder(scratch / "resnet18.pth", scratch / f"usual18-{number}") for number in range(2)]
    with usual.running(folders, "resnet18", workers=1, threads=1) as other:
        for number in range(2):
            path = f"/predictions/model{number}"
            wait_until(partial(answers, other.port, photo, path), timeout_s=120, what="an answer")
        theirs = fitting(other.process.pid, models=2)
    table.add("ResNet-18s that fit in 4 GB, int8", ours=ours, other=theirs, unit="models", target=5, essential=True)


def load_and_ask(server: Server, name: str, url: str, photo: bytes) -> None:
    body = json.dumps({"model_name": name, "url": url}).encode()
    assert server.call("POST", "/models", body, timeout_s=60).status == 200
    for _ in range(5):
        assert load.once(server.port, photo, f"/models/{name}/invoke") == 200


def fitting(pid: int, *, models: int) -> int:
    """What is left of 4 GB beside the server itself, divided by what each of its `models` takes."""
    family = [pid, *descendants(pid)]
    workers = sum(pss_mib(member) for member in family if "worker" in command(member))
    base = sum(pss_mib(member) for member in family if "worker" not in command(member))
    return int((4096 - base) / (workers / models))


def let_in(artifact: Path) -> int:
    """How many models like `artifact` the plan of memory takes in 4 GB, the last with what loading takes."""
    manifest = load_manifest(artifact)
    network = manifest.files[manifest.network].bytes
    machine = Machine(cpus=len(os.sched_getaffinity(0)), memory_bytes=4096 * MIB)
    shape = choose_multi_model_shape(ServeConfig.from_env({"SAGEMAKER_MULTI_MODEL": "true"}), machine)
    return (4096 - shape.total_mib - loading_mib(network)) // model_mib(network)
