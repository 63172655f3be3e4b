"""What goes wrong: broken artifacts, deaths, hangs, stops. Each test starts a server of its own."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.serving import (
    PHOTO,
    WHITE,
    Answer,
    Server,
    running_server,
    serve_command,
    serve_environment,
    starting_server,
    tiny_network,
    write_artifact,
)
from tests.support import encoded, free_port, picture, wait_until


def in_background(call: Callable[[], Answer]) -> tuple[threading.Thread, list[Answer]]:
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    return thread, answers


def ended(server: Server, *, within_s: float) -> tuple[int, str]:
    code = server.process.wait(within_s)
    return code, server.log.read_text().splitlines()[-1]


def test_a6_53_ping_says_503_until_a_worker_has_answered_a_warm_up(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    with starting_server(tmp_path) as server:
        seen: list[int] = []

        def look() -> bool:
            seen.append(server.ping())
            return seen[-1] == 200

        wait_until(look, timeout_s=60, what="/ping to say 200")
        assert 503 in seen
        assert server.classify().status == 200


def test_a6_53_ping_never_says_200_of_an_artifact_that_is_not_whole(tmp_path: Path) -> None:
    """The altered file is so large that a worker could answer long before it is read to its end."""
    write_artifact(tmp_path / "model")
    size = 2 * 2**30
    with (tmp_path / "model" / "photos.bin").open("wb") as file:
        file.truncate(size)
    path = tmp_path / "model" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["photos.bin"] = {"bytes": size, "sha256": "0" * 64}
    path.write_text(json.dumps(manifest))
    with starting_server(tmp_path) as server:
        seen: set[int] = set()

        def over() -> bool:
            seen.add(server.ping())
            return server.process.poll() is not None

        wait_until(over, timeout_s=120, what="the end")
        assert any(line["source"] == "worker" and line["message"] == "ready" for line in server.lines())
        assert seen <= {0, 503}
        assert "is not the file that manifest.json describes" in ended(server, within_s=1)[1]


def break_manifest(model: Path) -> None:
    (model / "manifest.json").write_text("{")


def break_network(model: Path) -> None:
    (model / "model.onnx").write_bytes((model / "model.onnx").read_bytes()[:-10])


def wrong_network(model: Path) -> None:
    write_artifact(model, b"not ONNX at all")


def wrong_classes(model: Path) -> None:
    write_artifact(model, class_names=("a", "b"))


def no_model(model: Path) -> None:
    for path in model.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_model, "holds no manifest.json"),
        (break_manifest, "cannot be read as JSON"),
        (break_network, "is not the file that manifest.json describes"),
        (wrong_network, "cannot be loaded by ONNX Runtime"),
        (wrong_classes, "not of one artifact"),
    ],
)
def test_a6_58_a_broken_artifact_ends_it_with_one_sentence(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    write_artifact(tmp_path / "model")
    damage(tmp_path / "model")
    with starting_server(tmp_path) as server:
        code, last = ended(server, within_s=30)
        assert code == 1
        assert last.startswith("serve: ")
        assert words in last
        assert not server.workers()


def test_settings_that_cannot_be_used_end_it_with_one_sentence(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    with starting_server(tmp_path, SAGEMAKER_MODEL_SERVER_WORKERS="many", KENNEL_SERVE_THREADS="0") as server:
        code, last = ended(server, within_s=30)
    assert code == 1
    assert "SAGEMAKER_MODEL_SERVER_WORKERS is 'many'" in last
    assert "KENNEL_SERVE_THREADS is '0'" in last


def test_a_port_that_is_taken_ends_it_with_one_sentence(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    with running_server(tmp_path) as server, starting_server(tmp_path, SAGEMAKER_BIND_TO_PORT=str(server.port)) as late:
        code, last = ended(late, within_s=30)
        assert code == 1
        assert f"port {server.port} is taken" in last
        assert server.ping() == 200


def test_no_code_in_the_artifact_is_run(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    for name in ("json.py", "numpy.py", "sitecustomize.py", "usercustomize.py", "colorsys.py", "serve.py", "mms.py"):
        (tmp_path / "model" / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n")
    (tmp_path / "model" / "MAR-INF").mkdir()
    (tmp_path / "model" / "MAR-INF" / "MANIFEST.json").write_text('{"model": {"handler": "json.py"}}')
    with running_server(tmp_path) as server:
        assert server.classify().status == 200
        assert not (tmp_path / "ran").exists()


def test_a6_56_sigterm_answers_what_is_in_flight_and_exits_0(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model", tiny_network(hangs_on_white=True))
    # The hung call stands for a slow one: its answer, a 504, comes after the signal.
    with running_server(tmp_path, SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS="6") as server:
        thread, answers = in_background(lambda: server.classify(WHITE, "image/png"))
        wait_until(lambda: any(busy(pid) for pid in server.workers()), timeout_s=10, what="a worker at work")
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        assert kept_ping(kept) == 200
        server.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        wait_until(lambda: "draining" in server.log.read_text(), timeout_s=5, what="the drain to begin")
        assert kept_ping(kept) == 503
        assert server.process.wait(25) == 0
        thread.join()
        assert answers[0].status == 504
        assert time.monotonic() - started < 25
        assert not server.workers()


def kept_ping(connection: http.client.HTTPConnection) -> int:
    """On a connection that was there before."""
    connection.request("GET", "/ping")
    response = connection.getresponse()
    response.read()
    return response.status


def busy(pid: int) -> bool:
    """Whether a process has used more than half a second of CPU time and runs on."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] == "R" and int(fields[11]) > os.sysconf("SC_CLK_TCK") / 2


def test_a6_56_sigterm_before_it_is_ready_exits_0_too(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    with starting_server(tmp_path) as server:
        wait_until(lambda: server.ping() == 503, timeout_s=30, what="/ping to answer")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(25) == 0


def test_a6_56_sigterm_at_the_first_moment_exits_0(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    with starting_server(tmp_path) as server:
        handled = wait_until(lambda: _handles_sigterm(server.process.pid), timeout_s=10, what="a handler of SIGTERM")
        assert handled
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert "Traceback" not in server.log.read_text()


def _handles_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


# An exception raised where a finalizer runs goes no further, and imports run many.
SIGTERM_IN_A_FINALIZER = """
import signal, sys
from serve.__main__ import run

class Dropped:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

class Finder:
    @staticmethod
    def find_spec(name, *_):
        if name == "serve.entrypoint":
            Dropped()

sys.meta_path.insert(0, Finder)
run()
"""


def test_a6_56_sigterm_while_an_import_cleans_up_exits_0(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SIGTERM_IN_A_FINALIZER],
        env=serve_environment(tmp_path, free_port()),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a6_53_a_killed_worker_comes_back(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    with running_server(tmp_path) as server:
        before = set(server.workers())
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.ping() == 503, timeout_s=3, what="/ping to say 503")
        wait_until(lambda: server.ping() == 200, timeout_s=20, what="/ping to say 200 again")
        assert server.classify().status == 200
        wait_until(lambda: len(server.workers()) == len(before), timeout_s=20, what="all workers to be back")
        assert not before & set(server.workers())


def test_a6_61_a_worker_that_dies_at_a_request_is_503_with_retry_after(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model", tiny_network(hangs_on_white=True))
    with running_server(tmp_path) as server:
        thread, answers = in_background(lambda: server.classify(WHITE, "image/png"))
        victim = wait_until(
            lambda: next((pid for pid in server.workers() if busy(pid)), None), timeout_s=10, what="a worker at work"
        )
        os.kill(victim, signal.SIGKILL)
        thread.join(10)
        assert answers[0].status == 503
        assert answers[0].json["error"]["code"] == "worker_died"
        assert answers[0].headers["retry-after"] == "1"


def test_a6_61_a_hung_call_is_504_at_the_deadline_and_frees_its_worker(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model", tiny_network(hangs_on_white=True))
    with running_server(
        tmp_path, SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS="4", SAGEMAKER_MODEL_SERVER_WORKERS="1"
    ) as server:
        (before,) = server.workers()
        started = time.monotonic()
        answer = server.classify(WHITE, "image/png")
        assert answer.status == 504
        assert answer.json["error"]["code"] == "deadline_exceeded"
        assert 3 < time.monotonic() - started < 15
        wait_until(lambda: server.workers() not in ([], [before]), timeout_s=10, what="another worker")
        wait_until(server.ready, timeout_s=10, what="/ping to say 200 again")
        assert server.classify(PHOTO).status == 200


def test_a6_53_a_stopped_worker_is_no_worker_and_is_replaced(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    with running_server(
        tmp_path, SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS="3", SAGEMAKER_MODEL_SERVER_WORKERS="1"
    ) as server:
        (stopped,) = server.workers()
        os.kill(stopped, signal.SIGSTOP)
        wait_until(lambda: server.ping() == 503, timeout_s=5, what="/ping to say 503")
        wait_until(lambda: stopped not in server.workers(), timeout_s=20, what="the stopped worker to be ended")
        wait_until(server.ready, timeout_s=20, what="/ping to say 200 again")
        assert server.classify().status == 200


@pytest.mark.parametrize(
    ("victim", "words"),
    [
        ("starter", "process of multi-model-server"),
        ("java", "multi-model-server (Java) ended"),
        ("haproxy", "HAProxy ended"),
    ],
)
def test_a6_53_what_does_not_heal_ends_the_container(tmp_path: Path, victim: str, words: str) -> None:
    write_artifact(tmp_path / "model")
    with running_server(tmp_path) as server:
        os.kill(server.worker_starter() if victim == "starter" else server.child(victim), signal.SIGKILL)
        code, last = ended(server, within_s=10)
        assert code == 1
        assert words in last
        assert not server.workers()


@pytest.mark.slow
def test_a6_53_a_java_that_is_stopped_is_not_ready_and_ends_the_container_at_last(tmp_path: Path) -> None:
    """It still accepts connections, and its workers are at rest and well."""
    write_artifact(tmp_path / "model")
    with running_server(tmp_path) as server:
        java = server.child("java")
        os.kill(java, signal.SIGSTOP)
        wait_until(lambda: server.ping() == 503, timeout_s=8, what="/ping to say 503")  # ping() waits 3 s at most.
        os.kill(java, signal.SIGCONT)
        wait_until(server.ready, timeout_s=8, what="/ping to say 200 again")
        assert server.classify().status == 200
        os.kill(java, signal.SIGSTOP)
        code, last = ended(server, within_s=80)
        assert code == 1
        assert last == "serve: multi-model-server (Java) has not answered for 60 s; the container ends"
        assert not server.workers()


def test_a6_61_a_full_queue_is_503_with_retry_after_and_ping_is_200(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model", tiny_network(hangs_on_white=True))
    with running_server(
        tmp_path, SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS="6", SAGEMAKER_MODEL_SERVER_WORKERS="1"
    ) as server:
        head = (
            f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(WHITE)}\r\n\r\n"
        )
        with ExitStack() as stack:
            address = ("127.0.0.1", server.port)
            clients = [stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(60)]
            for client in clients:
                client.sendall(head.encode() + WHITE)
            # A6 52 and 53: /ping is never behind inference, and a worker at work is no dead one.
            started = time.monotonic()
            assert server.ping() == 200
            assert time.monotonic() - started < 2
            answers = [http.client.HTTPResponse(client) for client in clients]
            for answer in answers:
                answer.begin()
            refused = [answer for answer in answers if answer.status == 503]
            assert {answer.status for answer in answers} <= {503, 504}
            assert all(answer.getheader("retry-after") == "1" for answer in refused)
            assert any(b"overloaded" in answer.read() for answer in refused)


def test_a_log_that_nobody_reads_any_more_fails_no_request(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    port = free_port()
    with subprocess.Popen(
        serve_command(), env=serve_environment(tmp_path, port), stdout=subprocess.PIPE, cwd=tmp_path
    ) as process:
        try:
            server = Server(process, port, Path(os.devnull))
            wait_until(server.ready, timeout_s=60, what="/ping to say 200")
            assert process.stdout
            process.stdout.close()
            for _ in range(5):
                assert server.classify().status == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_two_servers_run_side_by_side(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_artifact(tmp_path / name / "model", architecture=name)
    with running_server(tmp_path / "one") as one, running_server(tmp_path / "two") as two:
        assert one.classify().json["model"]["architecture"] == "one"
        assert two.classify().json["model"]["architecture"] == "two"


def test_serve_on_path_is_this_program(tmp_path: Path) -> None:
    """`python -m serve` with nothing to serve: one sentence, no traceback."""
    done = subprocess.run(
        serve_command(),
        env=serve_environment(tmp_path, free_port()),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("serve: there is no model folder")
    assert "Traceback" not in done.stderr


def test_java_and_haproxy_of_the_wheels_are_enough(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    with running_server(tmp_path, PATH=str(tmp_path)) as server:
        assert server.classify().status == 200
        assert server.call("POST", "/ping").status == 405


def test_a8_73_a_batch_job_is_served_as_the_platform_starts_it(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    batch = {
        "SAGEMAKER_BATCH": "True",  # As the SDK's local mode writes it (A9 77).
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": "6",
        "SAGEMAKER_BATCH_STRATEGY": "SINGLE_RECORD",
        "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": "4",
    }
    with running_server(tmp_path, **batch) as server:
        parameters = server.call("GET", "/execution-parameters").json
        assert parameters["MaxConcurrentTransforms"] * parameters["MaxPayloadInMB"] <= 100
        limits = server.call("GET", "/info").json["limits"]
        assert (limits["max_payload_bytes"], limits["deadline_s"]) == (6 * 1024**2, 590)
        assert server.classify(headers={"Accept": "application/jsonlines"}).status == 200


def test_a8_75_a_photo_of_40_mb_is_served_where_the_limit_is_raised(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    photo = encoded(picture(3700, 3700), "BMP")
    assert len(photo) > 40_000_000
    settings = {"SAGEMAKER_MAX_PAYLOAD_IN_MB": "64", "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "900"}
    with running_server(tmp_path, **settings) as server:
        assert server.classify(photo, "image/bmp").status == 200
        assert server.classify(iter([photo[:30_000_000], photo[30_000_000:]]), "image/bmp").status == 200


def test_a6_51_connections_are_accepted_within_250_ms(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    with running_server(tmp_path) as server:
        for _ in range(20):
            started = time.monotonic()
            with socket.create_connection(("127.0.0.1", server.port)):
                assert time.monotonic() - started < 0.25


def test_a6_62_an_answer_type_can_be_the_default(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model")
    with running_server(tmp_path, SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT="text/csv") as server:
        assert server.classify().headers["content-type"] == "text/csv"
        assert server.classify(headers={"Accept": "application/json"}).json["label"]
