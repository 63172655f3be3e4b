"""Many clients, slow clients, odd clients, and a stop in the midst of them."""

from __future__ import annotations

import base64
import http.client
import json
import os
import resource
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from PIL import Image

from serve.api import ATTRIBUTES_HEADER
from tests.serving import PHOTO, WHITE, Server, running_server, tiny_network, write_artifact
from tests.support import encoded, wait_until

HEAD = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(PHOTO)}\r\n\r\n"
REQUEST = HEAD.encode() + PHOTO
PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
ONE = {ATTRIBUTES_HEADER: "top_k=1"}
CORES = os.sched_getaffinity(0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base: Path = tmp_path_factory.mktemp("base")
    write_artifact(base / "model")
    with running_server(base) as server:
        yield server


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def read_answer(client: socket.socket) -> tuple[int, bytes]:
    response = http.client.HTTPResponse(client)
    response.begin()
    return response.status, response.read()


def read_all(client: socket.socket) -> bytes:
    with suppress(ConnectionResetError):
        return b"".join(iter(lambda: client.recv(65536), b""))
    return b""


def test_fifty_trickling_uploads_take_no_worker_s_place(server: Server) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(server)) for _ in range(50)]
        for client in slow:
            client.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 1000)
        for _ in range(8):  # All within the 10 s that an upload may take.
            for client in slow:
                client.sendall(b"x" * 100)
            assert server.classify().status == 200
        assert server.ping() == 200


def test_an_upload_that_does_not_end_is_408(server: Server) -> None:
    with connect(server) as client:
        client.sendall(REQUEST[:-10])
        status, body = read_answer(client)
    assert status == 408
    assert b"upload_too_slow" in body


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two thousand classes, whose answer to many photos has megabytes."""
    base: Path = tmp_path_factory.mktemp("talkative")
    names = tuple(f"class {number}" for number in range(2000))
    write_artifact(base / "model", tiny_network(classes=2000), class_names=names, top_k=2000)
    with running_server(base) as server:
        yield server


def test_clients_that_do_not_read_their_answers_take_no_worker_s_place(talkative: Server) -> None:
    body = json.dumps({"instances": [{"b64": base64.b64encode(PHOTO).decode()}] * 64}).encode()
    head = HEAD.replace("image/jpeg", "application/json").replace(str(len(PHOTO)), str(len(body)))
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(talkative)) for _ in range(4)]
        for client in slow:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            client.sendall(head.encode() + body)
        for client in slow:
            assert client.recv(12) == b"HTTP/1.1 200"
        for _ in range(10):
            assert talkative.classify(headers=ONE).status == 200
        assert talkative.ping() == 200
        rest = int(slow[0].recv(4096).decode().lower().split("content-length: ")[1].split("\r\n")[0])
        assert rest > 8 * 2**20  # More than HAProxy and the kernel hold for a client.


def test_a6_52_ping_is_answered_within_two_seconds_under_full_load(server: Server) -> None:
    stop, outcomes = threading.Event(), Counter[str]()
    kinds = {"keep": True, "rest_s": 0.0}
    threads = [
        threading.Thread(target=_one_after_another, args=(server, outcomes, stop), kwargs=kinds) for _ in range(64)
    ]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: outcomes["200"] > 200, timeout_s=30, what="two hundred answers")
        for _ in range(20):
            started = time.monotonic()
            assert server.call("GET", "/ping", timeout_s=10).status == 200
            assert time.monotonic() - started < 2
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(outcomes) <= {"200", "503"}, outcomes


def test_bodies_beyond_the_front_s_memory_are_refused_and_ping_is_answered(server: Server) -> None:
    """Each of these could fill a buffer of a MiB; as many as were planned for are taken in."""
    planned = next(line["memory_reason"] for line in server.lines() if "memory_reason" in line)
    most = int(planned.split("front with ")[1].split(" ")[0])
    front = server.child("haproxy")
    body = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n\r\n" + b"x" * 1_000_000
    before = rss_mib(front)
    with ExitStack() as stack:
        for _ in range(most):
            stack.enter_context(connect(server)).sendall(body)
        refused = 0
        for _ in range(30):  # All within the 10 s that the uploads before them may take.
            answer = server.classify(b"x" * 1_000_000)
            refused += (answer.status, b"overloaded" in answer.body) == (503, True)
        assert refused == 30
        assert server.ping() == 200
        assert most / 2 < rss_mib(front) - before < most * 1.15
    wait_until(lambda: server.classify().status == 200, timeout_s=20, what="an answer")


def rss_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024


def test_a_thousand_connections_are_served(server: Server) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip(f"this process may open {hard} files; a thousand connections and their test need 4096")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    with ExitStack() as stack:
        clients = []
        for _ in range(1000):
            clients.append(stack.enter_context(connect(server)))
            clients[-1].sendall(PING)  # A connection without a request is closed after 10 s, one at rest after 75 s.
            assert read_answer(clients[-1])[0] == 200
        for round_ in range(2):
            for first in range(0, 1000, 50):
                group = clients[first : first + 50]
                for client in group:
                    client.sendall(REQUEST)
                assert {read_answer(client)[0] for client in group} == {200}, round_
        assert server.ping() == 200


def test_a_burst_is_answered_or_refused_with_retry_after(server: Server) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(500)]
        for client in clients:
            client.sendall(REQUEST)
        answers = Counter(read_answer(client)[0] for client in clients)
    assert set(answers) <= {200, 503}
    assert answers[200] >= 64


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    bad = REQUEST.replace(b"image/jpeg", b"text/plain")
    with connect(server) as client:
        client.sendall(REQUEST + PING + REQUEST + bad)
        data = b""
        while data.count(b"HTTP/1.1 ") < 4:
            data += client.recv(65536)
    statuses = [part[:3] for part in data.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"200", b"200", b"415"]


@pytest.mark.parametrize(
    "head",
    [
        b"rubbish\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        b"POST /invocations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnot hex\r\n",
        b"POST /invocations HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 9000 + b"\r\nAccept: " + b"b" * 9000 + b"\r\n\r\n",
    ],
)
def test_requests_that_are_not_http_are_400(server: Server, head: bytes) -> None:
    with connect(server) as client:
        client.sendall(head)
        assert client.recv(64).startswith(b"HTTP/1.1 400")
    assert server.ping() == 200


def test_a_body_shorter_than_its_length_is_given_up(server: Server) -> None:
    with connect(server) as client:
        client.sendall(REQUEST[:-10])
        client.shutdown(socket.SHUT_WR)
        assert b" 200 " not in read_all(client)[:20]
    assert server.classify().status == 200


def test_http_1_0_is_answered_and_closed(server: Server) -> None:
    with connect(server) as client:
        client.sendall(REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert b" 200 " in read_all(client)[:20]


@pytest.mark.skipif(len(CORES) < 2, reason="one core cannot be shared out")
def test_queued_requests_keep_to_a_core_each_and_a_lone_one_has_all(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model", tiny_network(ballast=8_000_000))
    with running_server(tmp_path) as server:
        with ThreadPoolExecutor(8) as clients:
            assert {answer.status for answer in clients.map(lambda _: server.classify(), range(48))} == {200}
        workers = server.workers()
        assert {frozenset(cores_of(worker)) for worker in workers} == {frozenset([core]) for core in CORES}
        wait_until(
            lambda: server.classify().status == 200 and all(cores_of(worker) == CORES for worker in workers),
            timeout_s=20,
            what="all cores for each worker",
        )


def cores_of(pid: int) -> set[int]:
    """Those that every thread of a process may run on."""
    found = {frozenset(os.sched_getaffinity(int(path.name))) for path in Path(f"/proc/{pid}/task").iterdir()}
    assert len(found) == 1
    return set(found.pop())


def test_clients_that_left_the_queue_are_forgotten(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model", tiny_network(hangs_on_white=True))
    settings = {"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "8", "SAGEMAKER_MODEL_SERVER_WORKERS": "1"}
    white = HEAD.replace(str(len(PHOTO)), str(len(WHITE))).encode() + WHITE
    with running_server(tmp_path, **settings) as server, connect(server) as first:
        first.sendall(white)
        with ExitStack() as stack:
            for client in [stack.enter_context(connect(server)) for _ in range(9)]:
                client.sendall(white)
            time.sleep(0.5)  # They are in the queue behind the first; then they leave.
        assert read_answer(first)[0] == 504
        # Were they still there, each would hold the worker for as long as the first did.
        started = time.monotonic()
        wait_until(lambda: server.classify().status == 200, timeout_s=20, what="a worker to be free")
        assert time.monotonic() - started < 6


def test_a6_56_sigterm_under_load_loses_no_accepted_request(tmp_path: Path) -> None:
    """Neither of clients that connect anew for each, nor of those that keep their connection, busy or at rest."""
    write_artifact(tmp_path / "model")
    outcomes: Counter[str] = Counter()
    stop = threading.Event()
    with running_server(tmp_path) as server, ExitStack() as stack:
        kinds = [(False, 0.0)] * 4 + [(True, 0.0)] * 4 + [(True, 0.02)] * 4
        threads = [
            threading.Thread(
                target=_one_after_another, args=(server, outcomes, stop), kwargs={"keep": keep, "rest_s": rest}
            )
            for keep, rest in kinds
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: outcomes["200"] > 100, timeout_s=20, what="a hundred answers")
        stack.enter_context(connect(server))  # A connection at rest for good: it must not hold up the end.
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(25) == 0
        stop.set()
        for thread in threads:
            thread.join()
    assert set(outcomes) <= {"200", "refused"}, outcomes


def test_a6_56_sigterm_with_a_long_queue_and_an_upload_under_way_loses_none(tmp_path: Path) -> None:
    """The queue takes seconds to empty: longer than the front would need to find a server that is down."""
    write_artifact(tmp_path / "model")
    photo = encoded(Image.new("RGB", (5000, 5000)))  # A third of a second of decoding.
    slow = HEAD.replace(str(len(PHOTO)), str(len(photo))).encode() + photo
    settings = {"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "110", "SAGEMAKER_MODEL_SERVER_WORKERS": "1"}
    with running_server(tmp_path, **settings) as server, ExitStack() as stack:
        queued = [stack.enter_context(connect(server)) for _ in range(5)]
        for client in queued:
            client.sendall(slow)
        wait_until(lambda: _waiting(server) >= 4, timeout_s=10, what="a queue")
        uploading = stack.enter_context(connect(server))
        uploading.sendall(REQUEST[:-10])
        assert server.call("GET", "/ping").status == 200  # HAProxy has one thread: it knows of the upload.
        server.process.send_signal(signal.SIGTERM)
        assert {read_answer(client)[0] for client in queued[:2]} == {200}
        uploading.sendall(REQUEST[-10:])
        assert {read_answer(client)[0] for client in (*queued[2:], uploading)} == {200}
        assert server.process.wait(25) == 0


def _waiting(server: Server) -> float:
    """How many requests are in the front's queue."""
    metrics = server.call("GET", "/metrics").body.decode()
    return float(metrics.split('haproxy_backend_current_queue{proxy="workers"} ')[1].split()[0])


def _one_after_another(
    server: Server, outcomes: Counter[str], stop: threading.Event, *, keep: bool, rest_s: float
) -> None:
    """Whoever is accepted must get an answer, until it is told that the connection ends; who comes late is refused."""
    client: socket.socket | None = None
    while not stop.wait(rest_s):
        try:
            client = client or connect(server)
        except ConnectionRefusedError:
            outcomes["refused"] += 1
            return
        try:
            client.sendall(REQUEST)
            response = http.client.HTTPResponse(client)
            response.begin()
            response.read()
            outcomes[str(response.status)] += 1
        except (OSError, http.client.HTTPException) as error:
            outcomes[repr(error)] += 1
            return
        if not keep or response.getheader("connection") == "close":
            client.close()
            client = None
    if client:
        client.close()
