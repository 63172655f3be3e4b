"""Photos from S3 and notifications of buckets, before boto3's real client and moto's S3."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar

import boto3
import pytest
from moto.server import ThreadedMotoServer

import classify
from endpoint import Buckets
from errors import Refusal
from events import S3Object
from tests.lambda_runtime import (
    Context,
    RuntimeStandIn,
    container_error,
    event,
    photo_answer,
    service_error,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

KEY = "new/rex at the sea (été).jpg"
RESULT = f"results/{KEY}.json"
PHOTO = base64.b64decode(event("direct_image")["image"])
DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def runtime(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[RuntimeStandIn]:
    with RuntimeStandIn() as stand_in:
        env = {**stand_in.env, "AWS_ENDPOINT_URL_S3": moto, "ALLOWED_BUCKETS": "photos,versions,gone"}
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        classify.application.cache_clear()
        yield stand_in
        classify.application.cache_clear()


@pytest.fixture
def s3(runtime: RuntimeStandIn) -> Iterator[S3Client]:
    client = boto3.client("s3")
    client.create_bucket(Bucket="photos", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    client.put_object(Bucket="photos", Key=KEY, Body=PHOTO)
    client.put_object(Bucket="photos", Key="dogs/rex.jpg", Body=PHOTO)
    yield client
    for item in client.list_objects_v2(Bucket="photos").get("Contents", []):
        client.delete_object(Bucket="photos", Key=item["Key"])
    client.delete_bucket(Bucket="photos")


def keys(s3: S3Client) -> set[str]:
    return {item["Key"] for item in s3.list_objects_v2(Bucket="photos")["Contents"]}


def read(s3: S3Client, key: str) -> Any:
    found = s3.get_object(Bucket="photos", Key=key)
    assert found["ContentType"] == "application/json"
    return json.loads(found["Body"].read())


def test_a_photo_is_read_from_an_allowed_bucket(s3: S3Client, runtime: RuntimeStandIn) -> None:
    answer = classify.handler(event("direct_s3"), Context())

    assert answer["label"] == "Affenpinscher"
    assert (runtime.calls[0].body, runtime.calls[0].attributes) == (PHOTO, "top_k=3")


@pytest.mark.parametrize(
    ("location", "status", "code"),
    [
        ("s3://other/rex.jpg", 403, "bucket_not_allowed"),
        ("s3://photos/missing.jpg", 404, "object_not_found"),
        ("s3://gone/rex.jpg", 404, "object_not_found"),
    ],
)
def test_what_cannot_be_read_from_s3_is_told(s3: S3Client, location: str, status: int, code: str) -> None:
    error = classify.handler({"s3": location}, Context())["error"]

    assert (error["status"], error["code"]) == (status, code)


def test_an_object_over_the_limit_is_not_read(s3: S3Client, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put_object(Bucket="photos", Key="large.jpg", Body=bytes(60_000_000))

    error = classify.handler({"s3": "s3://photos/large.jpg"}, Context())["error"]

    assert (error["status"], "60,000,000 bytes" in error["message"]) == (413, True)


class Slow(BaseHTTPRequestHandler):
    """An S3 that gives an object of 16 MB in pieces, one a tenth of a second; of others a part, a 403, or no answer."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[str]] = []
    over: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.endswith("hangs"):
            self.over.wait(30)
            return
        if self.path.endswith("denied"):
            self.send_response(403)
            self.send_header("Content-Length", str(len(DENIED)))
            self.end_headers()
            self.wfile.write(DENIED)
            return
        self.send_response(200)
        self.send_header("Content-Length", "16000000")
        self.end_headers()
        if self.path.endswith("breaks"):
            self.wfile.write(bytes(100_000))
            self.close_connection = True
            return
        if self.path.endswith("stops"):
            self.wfile.write(bytes(100_000))
            self.over.wait(30)
            return
        with suppress(OSError):  # The client goes away: that is what is tested.
            while not self.over.wait(0.1):
                self.wfile.write(bytes(16_384))

    do_PUT = do_GET

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def slow(runtime: RuntimeStandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[Buckets]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
    Slow.asked.clear()
    Slow.over.clear()
    yield Buckets(frozenset({"photos"}), timeout_s=1)
    Slow.over.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("key", "attempts"), [("hangs", 2), ("drips", 1), ("stops", 1)])
def test_a_bucket_that_takes_too_long_is_a_504(slow: Buckets, key: str, attempts: int) -> None:
    with pytest.raises(Refusal) as error:
        slow.read(S3Object(bucket="photos", key=key), max_bytes=20_000_000)

    assert (error.value.status, error.value.code) == (504, "bucket_timeout")
    assert len(Slow.asked) == attempts


def test_an_object_that_breaks_off_is_a_502(slow: Buckets) -> None:
    with pytest.raises(Refusal) as error:
        slow.read(S3Object(bucket="photos", key="breaks"), max_bytes=20_000_000)

    assert (error.value.status, error.value.code) == (502, "bucket_unreachable")


def test_a_bucket_that_takes_no_result_is_a_504(slow: Buckets) -> None:
    with pytest.raises(Refusal, match="in time") as error:
        slow.write_json(S3Object(bucket="photos", key="results/hangs"), {})

    assert error.value.status == 504


def test_a9_80_two_attempts_at_a_bucket_fit_into_its_time(runtime: RuntimeStandIn) -> None:
    settings: Any = Buckets(frozenset({"photos"}), timeout_s=10)._client.meta.config

    attempts = settings.retries["total_max_attempts"]
    assert (attempts, attempts * (settings.connect_timeout + settings.read_timeout) <= 10) == (2, True)


def test_by_default_no_bucket_is_read(runtime: RuntimeStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALLOWED_BUCKETS")
    classify.application.cache_clear()

    assert classify.handler(event("direct_s3"), Context())["error"]["status"] == 403


def test_a_new_photo_gets_its_result_under_a_prefix_of_its_own(s3: S3Client) -> None:
    assert classify.handler(event("s3_created"), Context()) == {"classified": 1}

    result = read(s3, RESULT)
    assert result["source"] == {"bucket": "photos", "key": KEY, "version": None}
    assert result["label"] == "Affenpinscher"
    assert result["request_id"] == Context().aws_request_id


@pytest.mark.parametrize("prefixes", [("results/",), ("results/", "dev/")])
def test_a_bucket_that_notifies_of_everything_makes_no_endless_loop(
    s3: S3Client, runtime: RuntimeStandIn, prefixes: tuple[str, ...]
) -> None:
    """All that the functions write is notified back to them, as such a bucket does, until no more comes."""
    app = classify.application()
    functions = [
        classify.Application(replace(app.classifier, config=replace(app.classifier.config, result_prefix=prefix)))
        for prefix in prefixes
    ]
    seen = {"dogs/rex.jpg"}
    calls = 0
    while new := keys(s3) - seen:
        seen |= new
        calls += 1
        assert calls < 5, f"the function answers to its own output: {sorted(seen)}"
        records = [_record(key) for key in sorted(new)]
        for made in functions:
            made.handle({"Records": records}, Context())

    assert len(runtime.calls) == len(prefixes)
    assert keys(s3) == {KEY, "dogs/rex.jpg", *(f"{prefix}{KEY}.json" for prefix in prefixes)}


def _record(key: str) -> dict[str, Any]:
    (record,) = event("s3_created")["Records"]
    item = {**record["s3"]["object"], "key": key.replace(" ", "+")}
    return {**record, "s3": {**record["s3"], "object": item}}


def test_the_very_version_that_a_notification_names_is_read(s3: S3Client, runtime: RuntimeStandIn) -> None:
    s3.create_bucket(Bucket="versions", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    s3.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    version = s3.put_object(Bucket="versions", Key=KEY, Body=PHOTO)["VersionId"]
    s3.put_object(Bucket="versions", Key=KEY, Body=b"what was put there since")
    notification = event("s3_created_versioned")
    (record,) = notification["Records"]
    record["s3"]["bucket"]["name"] = "versions"
    record["s3"]["object"]["versionId"] = version

    assert classify.handler(notification, Context()) == {"classified": 1}
    assert runtime.calls[0].body == PHOTO


@pytest.mark.parametrize("name", ["s3_own_result", "s3_removed", "s3_test"])
def test_notifications_that_are_not_of_new_photos_do_nothing(s3: S3Client, runtime: RuntimeStandIn, name: str) -> None:
    before = keys(s3)

    assert classify.handler(event(name), Context()) == {"classified": 0}
    assert (runtime.calls, keys(s3)) == ([], before)


def test_an_object_that_is_no_photo_gets_its_error_as_result_and_is_not_tried_again(
    s3: S3Client, runtime: RuntimeStandIn
) -> None:
    runtime.behave = container_error(400, "unreadable_photo", "the photo is damaged")

    classify.handler(event("s3_created"), Context())

    assert read(s3, RESULT)["error"]["code"] == "unreadable_photo"


def test_what_may_succeed_later_is_a_failure_that_lambda_tries_again(s3: S3Client, runtime: RuntimeStandIn) -> None:
    runtime.behave = service_error(400, "ThrottlingException")

    with pytest.raises(RuntimeError, match="1 of 1 photos were not classified"):
        classify.handler(event("s3_created"), Context())

    assert RESULT not in keys(s3)
    runtime.behave = photo_answer()
    classify.handler(event("s3_created"), Context())
    assert read(s3, RESULT)["label"] == "Affenpinscher"


def test_a_photo_that_a_policy_keeps_from_us_is_a_failure_and_gets_no_result(slow: Buckets) -> None:
    with pytest.raises(RuntimeError, match="may not use it"):
        classify.handler({"Records": [_record("denied")]}, Context())

    assert Slow.asked == ["/photos/denied"]


def test_a_result_that_comes_too_late_to_be_written_is_tried_again(s3: S3Client, runtime: RuntimeStandIn) -> None:
    app = classify.application()
    hurried = replace(app.classifier, config=replace(app.classifier.config, function_timeout_s=0))

    with pytest.raises(RuntimeError, match="too late to be written"):
        classify.Application(hurried).handle(event("s3_created"), Context())

    assert (len(runtime.calls), RESULT in keys(s3)) == (1, False)


def test_one_photo_that_fails_does_not_keep_others_from_their_results(s3: S3Client, runtime: RuntimeStandIn) -> None:
    answers = [service_error(503, "ServiceUnavailable"), photo_answer()]
    runtime.behave = lambda call: answers.pop(0)(call)

    with pytest.raises(RuntimeError, match="1 of 2"):
        classify.handler({"Records": [_record("dogs/rex.jpg"), _record(KEY)]}, Context())

    assert RESULT in keys(s3)


def test_a_notification_of_a_bucket_that_is_not_allowed_fails_loudly(
    s3: S3Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALLOWED_BUCKETS", "others")
    classify.application.cache_clear()

    with pytest.raises(RuntimeError, match="not among those"):
        classify.handler(event("s3_created"), Context())
