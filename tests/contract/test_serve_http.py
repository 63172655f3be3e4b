"""The serving contract against the real stack: HAProxy, MMS and workers, started as `python -m serve`."""

from __future__ import annotations

import base64
import csv
import http.client
import io
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from container.artifact import load_manifest
from container.preprocessing import preprocess
from serve.engine import OnnxEngine
from serve.options import Options
from serve.predictor import Predictor
from tests.serving import CLASSES, PHOTO, Answer, Server, running_server, write_artifact
from tests.support import encoded, odd_photos, picture, wait_until

ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("base")
    write_artifact(folder / "model", metrics={"validation:accuracy": 0.5})
    return folder


@pytest.fixture(scope="module")
def server(base: Path) -> Iterator[Server]:
    with running_server(base, SAGEMAKER_MAX_PAYLOAD_IN_MB="6") as server:
        yield server


def assert_error(answer: Answer, status: int, code: str) -> str:
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    error = answer.json["error"]
    assert error["code"] == code
    assert error["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in error["message"]
    return str(error["message"])


def test_a6_52_ping_is_answered_within_two_seconds(server: Server) -> None:
    started = time.monotonic()
    assert server.call("GET", "/ping").status == 200
    assert server.call("HEAD", "/ping").status == 200
    assert time.monotonic() - started < 2


def test_a6_54_and_a6_63_a_photo_is_classified(server: Server, base: Path) -> None:
    """With the plain content type that data capture looks for."""
    answer = server.classify()
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    result = answer.json
    manifest = load_manifest(base / "model")
    assert result["model"] == {"architecture": "resnet18", "version": manifest.version}
    assert result["label"] == result["predictions"][0]["label"] == CLASSES[result["predictions"][0]["index"]]
    assert result["probability"] == result["predictions"][0]["probability"]
    assert [item["probability"] for item in result["predictions"]] == sorted(
        (item["probability"] for item in result["predictions"]), reverse=True
    )
    assert len(result["predictions"]) == manifest.top_k


def test_a9_85_odd_photos_are_answered_as_the_predictor_answers_them(server: Server, base: Path) -> None:
    predictor = Predictor.load(base / "model", threads=1)
    for name, photo in odd_photos().items():
        expected = predictor.predict(photo, Options(top_k=3)).classes
        answer = server.classify(photo, "application/octet-stream", headers={ATTRIBUTES: "top_k=3"})
        assert answer.status == 200, name
        found = {item["label"]: item["probability"] for item in answer.json["predictions"]}
        assert found == pytest.approx({item.label: item.probability for item in expected}, abs=1e-6), name


@pytest.mark.parametrize(
    "content_type",
    ["image/jpeg", "image/png", "image/webp", "image/bmp", "application/x-image", "application/octet-stream"],
)
def test_a9_82_the_photo_types_are_taken(server: Server, content_type: str) -> None:
    kind = {"image/png": "PNG", "image/webp": "WEBP", "image/bmp": "BMP"}.get(content_type, "JPEG")
    assert server.classify(encoded(picture(), kind), content_type).status == 200


def test_a9_84_nothing_is_fetched_for_a_caller(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/photo.jpg"
        body = json.dumps({"url": url, "instances": [{"url": url}, {"b64": url}]}).encode()
        results = server.classify(body, "application/json").json["results"]
        assert [result["error"]["code"] for result in results] == ["bad_request"] * 2
        with pytest.raises(TimeoutError):
            trap.accept()


def test_a_photo_without_a_content_type_is_sniffed(server: Server) -> None:
    assert server.call("POST", "/invocations", PHOTO).status == 200


def test_a9_82_instances_are_answered_each(server: Server) -> None:
    body = {"instances": [{"b64": base64.b64encode(PHOTO).decode()}, {"b64": "bm8gcGhvdG8="}, {"no": 1}]}
    answer = server.classify(json.dumps(body).encode(), "application/json", headers={ATTRIBUTES: "top_k=1"})
    assert answer.status == 200
    first, second, third = answer.json["results"]
    assert len(first["predictions"]) == 1
    assert first["label"] == server.classify().json["label"]
    assert second["error"]["code"] == "unreadable_photo"
    assert third["error"]["code"] == "bad_request"
    assert answer.json["model"]["architecture"] == "resnet18"


@pytest.mark.parametrize("top_k", [1, 3, 100])
def test_a6_59_custom_attributes_are_obeyed_and_echoed(server: Server, top_k: int) -> None:
    answer = server.classify(headers={ATTRIBUTES: f"top_k={top_k}"})
    assert len(answer.json["predictions"]) == min(top_k, len(CLASSES))
    assert answer.headers[ATTRIBUTES.lower()] == f"top_k={top_k}"


def test_a6_59_custom_attributes_are_echoed_with_errors_too(server: Server) -> None:
    for answer in (
        server.classify(b"no photo", headers={ATTRIBUTES: "trace=1, top_k=1"}),
        server.classify(content_type="text/plain", headers={ATTRIBUTES: "trace=1, top_k=1"}),
    ):
        assert answer.headers[ATTRIBUTES.lower()] == "trace=1, top_k=1"


def test_the_caller_s_request_id_is_kept_and_a_bad_one_replaced(server: Server) -> None:
    assert server.classify(headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for bad in ('a"b', 'a,a"b', "a, b"):
        assert len(server.classify(headers={"X-Request-Id": bad}).headers["x-request-id"]) == 36


def test_a6_61_bad_photos_are_400(server: Server) -> None:
    for photo in (b"no photo at all", PHOTO[:300], b"", encoded(picture())[:-200]):
        assert_error(server.classify(photo), 400, "unreadable_photo")
    assert_error(server.classify(b"{", "application/json"), 400, "bad_request")
    assert "top_k" in assert_error(server.classify(headers={ATTRIBUTES: "top_k=no"}), 400, "bad_request")


def test_a6_61_unknown_paths_are_404_and_methods_405(server: Server) -> None:
    assert_error(server.call("GET", "/"), 404, "not_found")
    assert_error(server.call("GET", "/models"), 404, "not_found")
    assert_error(server.call("POST", "/predictions/model", PHOTO), 404, "not_found")
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "FOO"):
        answer = server.call(method, "/invocations")
        assert_error(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == "POST"
    assert_error(server.call("POST", "/ping", b""), 405, "method_not_allowed")


def test_a6_61_an_accept_that_cannot_be_met_is_406(server: Server) -> None:
    assert_error(server.classify(headers={"Accept": "video/mp4"}), 406, "not_acceptable")


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "multipart/form-data; boundary=x, image/jpeg",
        "application/x-npy",
    ],
)
def test_a6_61_other_content_types_are_415(server: Server, content_type: str) -> None:
    words = assert_error(server.classify(content_type=content_type), 415, "unsupported_media_type")
    assert words.startswith("send a photo or JSON, with one Content-Type")  # The front's: MMS has not seen it.


def test_a6_61_two_content_types_are_415(server: Server) -> None:
    """MMS would take the first, and a form into a decoder that is known to be unsafe."""
    head = "POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: {}\r\nContent-Type: {}\r\nContent-Length: 1\r\n\r\nx"
    for types in (("multipart/form-data; boundary=x", "image/jpeg"), ("image/jpeg", "image/jpeg")):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(head.format(*types).encode())
            assert client.recv(64).startswith(b"HTTP/1.1 415")


def test_a6_55_bodies_up_to_the_limit_are_taken_and_more_is_413(server: Server) -> None:
    limit = 6 * 1024**2
    photo = encoded(picture(1400, 1400), "BMP").ljust(limit, b"\0")
    assert len(photo) == limit
    assert server.classify(photo, "image/bmp").status == 200
    assert "6 MiB" in assert_error(server.classify(photo + b"\0", "image/bmp"), 413, "payload_too_large")


@pytest.mark.parametrize("mib", [8, 40])
def test_a6_55_a_chunked_body_over_the_limit_is_413(server: Server, mib: int) -> None:
    """By little it is the worker that refuses it, by much MMS, which takes no more and ends the connection."""
    answer = server.classify(iter([b"x" * 2**20] * mib))
    assert_error(answer, 413, "payload_too_large")


def test_a9_85_a_decompression_bomb_is_422(server: Server) -> None:
    bomb = encoded(Image.new("1", (16_000, 16_000)))
    assert_error(server.classify(bomb, "image/png"), 422, "photo_too_large")


@pytest.mark.parametrize(("path", "status"), [("/ping", 200), ("/info", 200), ("/invocations", 405)])
def test_head_has_no_body_and_leaves_the_connection_usable(server: Server, path: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        for _ in range(3):
            client.sendall(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answer = client.recv(4096)
            assert answer.startswith(f"HTTP/1.1 {status}".encode())
            assert answer.endswith(b"\r\n\r\n")


def test_chunked_bodies_and_keep_alive(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for _ in range(3):
        connection.request(
            "POST",
            "/invocations",
            iter([PHOTO[:500], PHOTO[500:]]),
            {"Content-Type": "image/jpeg"},
            encode_chunked=True,
        )
        response = connection.getresponse()
        assert response.status == 200
        response.read()
    connection.close()


def test_expect_100_continue_is_answered(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(PHOTO)}\r\n"
        client.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert client.recv(64).startswith(b"HTTP/1.1 100")
        client.sendall(PHOTO)
        assert client.recv(64).startswith(b"HTTP/1.1 200")


def test_a_header_or_query_named_body_does_not_replace_the_body(server: Server) -> None:
    answer = server.call("POST", "/invocations?body=x", PHOTO, {"Content-Type": "image/jpeg", "body": "x"})
    assert answer.status == 200


def test_info_tells_what_is_served(server: Server, base: Path) -> None:
    info: dict[str, Any] = server.call("GET", "/info").json
    assert info["model"]["version"] == load_manifest(base / "model").version
    assert info["class_names"] == list(CLASSES)
    assert info["embedding_length"] is None
    assert info["precision"] == "float32"
    assert info["metrics"] == {"validation:accuracy": 0.5}
    assert info["limits"] == {
        "max_payload_bytes": 6 * 1024**2,
        "max_pixels": 64_000_000,
        "max_instances": 128,
        "deadline_s": 55,
        "queue_length": 64,
    }


def test_the_tiny_network_tells_photos_apart(base: Path) -> None:
    """The comparisons above would pass with a network that gives every photo the same answer."""
    spec = load_manifest(base / "model").preprocessing
    engine = OnnxEngine(base / "model" / "model.onnx", threads=1)
    first, second = (engine.run(preprocess(encoded(picture(seed=seed)), spec)[None], ["logits"]) for seed in (1, 2))
    assert abs(first[0] - second[0]).max() > 0.01


def test_an_engine_s_helpers_push_no_request_aside(base: Path) -> None:
    threads = Path("/proc/self/task")
    before = set(threads.iterdir())
    engine = OnnxEngine(base / "model" / "model.onnx", threads=3)
    helpers = [int(path.name) for path in set(threads.iterdir()) - before]
    assert [os.sched_getscheduler(helper) for helper in helpers] == [os.SCHED_BATCH] * 2, engine
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a8_73_and_a8_74_execution_parameters_keep_the_platform_s_product(server: Server) -> None:
    parameters = server.call("GET", "/execution-parameters").json
    assert parameters["BatchStrategy"] == "SINGLE_RECORD"
    assert parameters["MaxPayloadInMB"] == 6
    assert 1 <= parameters["MaxConcurrentTransforms"] * parameters["MaxPayloadInMB"] <= 100


def test_an_answer_as_csv_has_a_line_a_class(server: Server) -> None:
    answer = server.classify(headers={"Accept": "text/csv"})
    assert answer.headers["content-type"] == "text/csv"
    rows = list(csv.DictReader(io.StringIO(answer.body.decode())))
    expected = server.classify().json["predictions"]
    assert [(row["label"], float(row["probability"])) for row in rows] == [
        (item["label"], item["probability"]) for item in expected
    ]


def test_json_lines_come_and_go_a_line_a_photo(server: Server) -> None:
    lines = b'{"b64": "' + base64.b64encode(PHOTO) + b'"}\n{"b64": "bm8="}\n'
    answer = server.classify(lines, "application/jsonlines", headers={"Accept": "application/jsonlines"})
    assert answer.headers["content-type"] == "application/jsonlines"
    first, second = (json.loads(line) for line in answer.body.splitlines())
    assert first["label"] == server.classify().json["label"]
    assert second["error"]["code"] == "unreadable_photo"


def test_a_network_without_maps_or_features_says_so(server: Server) -> None:
    for attributes in ("explain=cam", "embed=true"):
        assert "network gives no" in assert_error(
            server.classify(headers={ATTRIBUTES: attributes}), 406, "not_acceptable"
        )


def test_a_request_has_two_log_lines_joined_by_its_id_and_ping_none(server: Server) -> None:
    before = len(server.lines())
    sent = {"X-Request-Id": "joined-1", "X-Amzn-SageMaker-Inference-Id": "theirs", ATTRIBUTES: "log_label=true"}
    label = server.classify(headers=sent).json["label"]
    server.ping()
    front, worker = wait_until(
        lambda: (
            sorted(
                (line for line in server.lines()[before:] if line.get("request_id") == "joined-1"),
                key=lambda line: str(line["source"]),
            )
            if sum(line.get("request_id") == "joined-1" for line in server.lines()) == 2
            else None
        ),
        timeout_s=5,
        what="two lines",
    )
    assert (front["source"], front["status"], front["inference_id"]) == ("front", 200, "theirs")
    assert front["total_ms"] >= front["worker_ms"] >= 0
    assert front["bytes_in"] > len(PHOTO)
    assert front["bytes_out"] > 0
    assert front["queue_ms"] >= 0
    assert worker["bytes"] == len(PHOTO)
    assert worker["decode_ms"] > 0
    assert 0 <= worker["queue_ms"] < 10_000
    assert (worker["source"], worker["photos"], worker["labels"]) == ("worker", ["64x48"], [label])
    assert worker["total_ms"] >= worker["inference_ms"] > 0
    assert not any(line.get("path") == "/ping" for line in server.lines())


def test_the_line_of_a_long_request_is_whole_but_for_the_end_of_what_was_long(server: Server) -> None:
    long = '"' * 3000
    sent = {"X-Request-Id": "i" * 128, "X-Amzn-SageMaker-Target-Model": long, "X-Amzn-SageMaker-Inference-Id": long}
    assert server.call("G" * 900, f"/{long}", headers=sent).status == 404
    line = wait_until(
        lambda: next((found for found in server.lines() if found.get("request_id") == "i" * 128), None),
        timeout_s=5,
        what="the line",
    )
    assert line["status"] == 404
    assert line["total_ms"] >= 0
    assert line["path"] == f"/{long}"[:256]
    assert line["target_model"] == long[:256]


def test_a6_66_one_line_says_which_engine_and_shape_were_chosen_and_why(server: Server) -> None:
    (line,) = [line for line in server.lines() if "reason" in line]
    assert line["message"].startswith("ONNX Runtime, ")
    assert line["reason"].startswith("no GPU can be seen; one worker a core")
    assert (line["network"], line["gpus"], line["driver"]) == ("model.onnx", 0, None)
    assert line["cpus"] > 0
    assert 0 < line["memory_planned_mib"] <= line["memory_limit_mib"]
    assert line["memory_reason"].startswith("Java ")


def test_the_label_is_logged_only_if_asked_for(server: Server) -> None:
    server.classify(headers={"X-Request-Id": "private-1"})
    line = wait_until(
        lambda: next(
            (
                found
                for found in server.lines()
                if (found.get("request_id"), found["source"]) == ("private-1", "worker")
            ),
            None,
        ),
        timeout_s=5,
        what="the worker's line",
    )
    assert "labels" not in line


def test_a6_64_metrics_are_prometheus_s(server: Server, base: Path) -> None:
    server.classify()
    server.classify(b"no photo")
    server.classify(content_type="text/plain")
    answer = server.call("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }
    model = ("model", "model")
    assert samples["kennel_responses_total", ("code", "200"), model] >= 1
    assert samples["kennel_responses_total", ("code", "400"), model] >= 1
    # The front's own answers are counted too, and /ping is not.
    before = samples["kennel_answers_total", ("code", "415")]
    server.classify(content_type="text/plain")
    server.ping()
    again = server.call("GET", "/metrics").body.decode()
    assert f'kennel_answers_total{{code="415"}} {before + 1}' in again
    for stage in ("queue", "decode", "inference", "total"):
        assert samples["kennel_stage_seconds_count", model, ("stage", stage)] >= 1
    assert samples["kennel_confidence_count", model] >= 1
    assert sum(value for name, value in samples.items() if name[0] == "kennel_predictions_total") >= 1
    assert samples["kennel_workers", model] == 2
    assert samples["kennel_ready",] == 1
    assert samples["kennel_workers_ended",] == 0
    version = load_manifest(base / "model").version
    assert samples["kennel_model_info", ("architecture", "resnet18"), model, ("version", version)] == 1
    assert sum(value for name, value in samples.items() if name[0] == "kennel_confidence_bucket") >= 1
    assert samples["haproxy_backend_current_queue", ("proxy", "workers")] == 0
