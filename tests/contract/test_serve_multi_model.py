"""SageMaker's multi-model API (A7) against the real stack."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serving import PHOTO, WHITE, Answer, Server, anonymous_mib, running_server, tiny_network, write_artifact
from tests.support import wait_until


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("base")
    for name in ("one", "two", "three"):
        write_artifact(folder / "models" / name / "model", architecture=name)
    write_artifact(folder / "models" / "slow" / "model", tiny_network(hangs_on_white=True))
    write_artifact(folder / "models" / "broken" / "model", b"not ONNX")
    (folder / "models" / "empty").mkdir()
    write_artifact(folder / "elsewhere")
    return folder


@pytest.fixture(scope="module")
def shared(base: Path) -> Iterator[Server]:
    with running_server(base, SAGEMAKER_MULTI_MODEL="True", SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS="6") as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    yield shared
    for model in shared.call("GET", "/models").json["models"]:
        shared.call("DELETE", f"/models/{model['modelName']}")
    assert not shared.workers()


def load(server: Server, base: Path, name: str, folder: str | None = None) -> Answer:
    url = folder or str(base / "models" / name / "model")
    return server.call("POST", "/models", json.dumps({"model_name": name, "url": url}).encode(), timeout_s=60)


def invoke(server: Server, name: str, photo: bytes = PHOTO, **options: Any) -> Answer:
    headers = {"Content-Type": "application/x-image", **options.pop("headers", {})}
    return server.call("POST", f"/models/{name}/invoke", photo, headers, **options)


def in_background(answers: list[Answer], server: Server, name: str, photo: bytes) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(invoke(server, name, photo)))
    thread.start()
    return thread


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a7_67_ping_is_200_with_no_model_loaded(server: Server) -> None:
    assert server.ping() == 200
    assert server.call("GET", "/models").json == {"models": []}


def test_a7_68_a_model_is_loaded_once(server: Server, base: Path) -> None:
    assert load(server, base, "one").status == 200
    again = load(server, base, "one")
    assert (again.status, again.json["error"]["code"]) == (409, "model_already_loaded")


def test_a7_70_a_loaded_model_answers_and_others_are_404(server: Server, base: Path) -> None:
    for name in ("one", "two"):
        load(server, base, name)
    for name in ("one", "two"):
        answer = invoke(server, name)
        assert (answer.status, answer.json["model"]["architecture"]) == (200, name)
    missing = invoke(server, "three")
    assert (missing.status, missing.json["error"]["code"]) == (404, "model_not_found")
    assert server.call("GET", "/models/one/invoke").status == 405


def test_a7_69_models_are_listed_page_by_page(server: Server, base: Path) -> None:
    for name in ("two", "one", "three"):
        load(server, base, name)
    first = server.call("GET", "/models?limit=2").json
    assert [model["modelName"] for model in first["models"]] == ["one", "three"]
    second = server.call("GET", f"/models?limit=2&next_page_token={first['nextPageToken']}").json
    assert second == {"models": [{"modelName": "two", "modelUrl": str(base / "models" / "two" / "model")}]}
    # A last page that is exactly full has no next one (MMS's own list says that it has).
    assert "nextPageToken" not in server.call("GET", "/models?limit=3").json
    assert server.call("GET", "/models?limit=none").status == 400


def test_a7_69_one_model_is_described_or_404(server: Server, base: Path) -> None:
    load(server, base, "one")
    assert server.call("GET", "/models/one").json["modelName"] == "one"
    assert server.call("GET", "/models/two").status == 404
    assert server.call("PUT", "/models/one", b"{}").status == 405


def test_a7_69_unloading_frees_the_memory(server: Server, base: Path) -> None:
    """Measured: what every process of the server holds, Java and HAProxy among them.

    Not pages of files, whose share is another one as servers beside this one come and go.
    """
    write_artifact(base / "models" / "big" / "model", tiny_network(ballast=16 * 2**20))  # 64 MiB of weights
    load(server, base, "one")
    assert invoke(server, "one").status == 200
    server.call("DELETE", "/models/one")  # Whatever is kept after a first model is kept once.
    before = anonymous_mib(server.process.pid)
    for _ in range(2):
        assert load(server, base, "one", str(base / "models" / "big" / "model")).status == 200
        assert invoke(server, "one").status == 200
        assert anonymous_mib(server.process.pid) - before > 60
        starter = server.worker_starter()
        assert server.call("DELETE", "/models/one").status == 200
        assert not server.workers()
        wait_until(partial(is_gone, starter), timeout_s=5, what="the starter to be gone")
    assert anonymous_mib(server.process.pid) - before < 20
    assert server.call("DELETE", "/models/one").status == 404
    assert invoke(server, "one").status == 404
    assert load(server, base, "one").status == 200


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/model.tar.gz",
        "s3://bucket/model",
        "relative/model",
        "{base}/elsewhere",
        "{base}/models/../elsewhere",
    ],
)
def test_a7_68_urls_and_paths_outside_the_models_folder_are_refused(server: Server, base: Path, url: str) -> None:
    answer = load(server, base, "x", url.format(base=base))
    assert answer.status == 400
    assert "must be a local folder in" in answer.json["error"]["message"]
    assert server.call("GET", "/models").json == {"models": []}


def test_a7_68_links_out_of_the_models_folder_are_refused(server: Server, base: Path) -> None:
    """A link to a folder outside, one folder within that is one, and a file that is one; a link within is taken."""
    models = base / "models"
    shutil.copytree(models / "one" / "model", models / "linked-file")
    (models / "linked-file" / "model.onnx").unlink()
    (models / "linked-file" / "model.onnx").symlink_to(base / "elsewhere" / "model.onnx")
    (models / "nested").mkdir()
    (models / "nested" / "inner").symlink_to(base / "elsewhere")
    (models / "linked-folder").symlink_to(base / "elsewhere")
    (models / "within").symlink_to(models / "one" / "model")
    for name in ("linked-file", "nested", "linked-folder"):
        answer = load(server, base, "x", str(models / name))
        assert (answer.status, answer.json["error"]["code"]) == (400, "bad_request"), name
        assert str(models) in answer.json["error"]["message"]
    assert load(server, base, "x", str(models / "within")).status == 200


def test_a7_70_the_caller_s_name_of_a_model_is_in_logs_and_metrics(server: Server, base: Path) -> None:
    load(server, base, "one")
    sent = {"X-Amzn-SageMaker-Target-Model": "dogs.tar.gz", "X-Request-Id": "target-1"}
    assert invoke(server, "one", headers=sent).status == 200
    assert invoke(server, "one", headers={"X-Amzn-SageMaker-Target-Model": "invented"}).status == 200

    def lines() -> list[Any]:
        return [line["target_model"] for line in server.lines() if line.get("request_id") == "target-1"]

    wait_until(lambda: lines() == ["dogs.tar.gz"] * 2, timeout_s=5, what="both log lines")
    metrics = server.call("GET", "/metrics").body.decode()
    assert 'kennel_target_model{model="one",target_model="dogs.tar.gz"} 1.0' in metrics
    assert "invented" not in metrics
    assert 'kennel_model_info{architecture="one",model="one"' in metrics
    info = server.call("GET", "/info").json
    assert info["models"]["one"]["class_names"] == ["red", "green", "blue"]
    # Figures of a model end with it: an endpoint loads and unloads for months.
    server.call("DELETE", "/models/one")
    assert 'model="one"' not in server.call("GET", "/metrics").body.decode()


def test_metrics_of_several_models_are_one_family_each(server: Server, base: Path) -> None:
    for name in ("one", "two"):
        load(server, base, name)
    text = server.call("GET", "/metrics").body.decode()
    headings = [line for line in text.splitlines() if line.startswith("# TYPE ")]
    assert len(headings) == len(set(headings))
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for name in ("kennel_workers", "kennel_model_info"):
        assert {sample.labels["model"]: sample.value for sample in families[name].samples} == {"one": 1, "two": 1}


@pytest.mark.parametrize(
    ("folder", "status", "code"),
    [("nowhere", 404, "model_not_found"), ("empty", 400, "model_unusable"), ("broken/model", 400, "model_unusable")],
)
def test_a7_68_what_cannot_be_loaded_leaves_nothing_behind(
    server: Server, base: Path, folder: str, status: int, code: str
) -> None:
    for _ in range(2):  # The second would be a 409 if a dead entry stayed.
        answer = load(server, base, "x", str(base / "models" / folder))
        assert (answer.status, answer.json["error"]["code"]) == (status, code)
    assert server.call("GET", "/models").json == {"models": []}
    assert not server.workers()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model_name": "x"}', b'{"model_name": 1, "url": 2}'])
def test_a7_68_a_body_that_is_no_load_request_is_400(server: Server, body: bytes) -> None:
    assert server.call("POST", "/models", body).status == 400


def test_a_chunked_or_large_load_request_is_refused(server: Server) -> None:
    assert server.call("POST", "/models", iter([b"{}"])).status == 411
    assert server.call("POST", "/models", b" " * 70_000).status == 413
    assert server.ping() == 200


@pytest.mark.parametrize("name", ["a/b", "..", ".", "a..b", ".a", "", "a" * 256, "\ud800"])
def test_a7_68_a_name_that_could_not_be_called_is_400(server: Server, base: Path, name: str) -> None:
    assert load(server, base, "one").status == 200
    assert load(server, base, name, str(base / "models" / "one" / "model")).status == 400
    assert invoke(server, "one").status == 200  # Nothing of it is touched.


@pytest.mark.parametrize("end", ["a" * 300, "\0", "\ud800"])
def test_a7_68_a_url_that_no_system_takes_is_400(server: Server, base: Path, end: str) -> None:
    answer = load(server, base, "x", f"{base}/models/{end}")
    assert (answer.status, answer.json["error"]["code"]) == (400, "bad_request")


def test_a7_71_a_model_that_could_not_be_loaded_for_a_while_can_be_again(server: Server, base: Path) -> None:
    """Its worker dies, and the next finds half a network; the one after it, and a new load, find it whole."""
    write_artifact(base / "models" / "brittle" / "model")
    network = base / "models" / "brittle" / "model" / "model.onnx"
    whole = network.read_bytes()
    assert load(server, base, "brittle").status == 200
    network.write_bytes(whole[:100])
    os.kill(server.workers()[0], signal.SIGKILL)
    wait_until(lambda: not server.workers(), timeout_s=5, what="the worker to be gone")
    time.sleep(3)  # One more at least is started, and fails: nothing of it can be seen from outside.
    network.write_bytes(whole)
    wait_until(lambda: invoke(server, "brittle").status == 200, timeout_s=40, what="an answer")
    assert server.call("DELETE", "/models/brittle").status == 200
    assert load(server, base, "brittle").status == 200
    assert invoke(server, "brittle").status == 200


def test_workers_that_end_with_their_model_are_not_counted_as_lost(server: Server, base: Path) -> None:
    def ended() -> float:
        text = server.call("GET", "/metrics").body.decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        return families["kennel_workers_ended"].samples[0].value

    before = ended()
    load(server, base, "one")
    server.call("DELETE", "/models/one")
    load(server, base, "one")
    assert ended() == before
    os.kill(server.workers()[0], signal.SIGKILL)
    wait_until(lambda: ended() == before + 1, timeout_s=10, what="the worker to be counted")


def test_a7_71_the_same_model_is_loaded_once_by_many(server: Server, base: Path) -> None:
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(load(server, base, "one").status)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 409, 409, 409]


def test_a7_71_a_call_during_the_unload_is_answered(server: Server, base: Path) -> None:
    load(server, base, "slow")
    answers: list[Answer] = []
    thread = in_background(answers, server, "slow", WHITE)
    time.sleep(1)  # The call is under way: nothing in it could be waited for from outside.
    assert server.call("DELETE", "/models/slow", timeout_s=30).status == 200
    thread.join()
    assert answers[0].status == 504  # Its own deadline, not a dropped connection.


def test_a7_a_killed_worker_and_a_killed_starter_come_back(server: Server, base: Path) -> None:
    load(server, base, "one")
    (worker,) = server.workers()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: server.workers() not in ([], [worker]), timeout_s=10, what="another worker")
    wait_until(lambda: invoke(server, "one").status == 200, timeout_s=30, what="an answer of it")
    os.kill(server.worker_starter(), signal.SIGKILL)
    wait_until(lambda: invoke(server, "one").status == 200 and server.workers(), timeout_s=20, what="an answer")
    wait_until(lambda: _has_starter(server), timeout_s=20, what="another starter")
    assert invoke(server, "one").status == 200


def _has_starter(server: Server) -> bool:
    try:
        return bool(server.worker_starter())
    except StopIteration:
        return False


def test_a7_67_the_multi_model_api_is_there_in_its_mode_alone(server: Server) -> None:
    assert server.classify().status == 404
    assert server.call("GET", "/nope").status == 404
