"""Lambda and the wire of SageMaker's runtime endpoint, on this machine.

The function itself runs for real: `python -m awslambdaric` processes, each fed by a Runtime API of ours, which is
what Lambda's service does. `RuntimeStandIn` answers InvokeEndpoint as AWS does, or passes it on to a container.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import queue
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import psutil

from tests.support import wait_until

ENDPOINT: Final = "dogs"
ACCOUNT: Final = "123456789012"
FUNCTION_ARN: Final = f"arn:aws:lambda:eu-west-1:{ACCOUNT}:function:function"
EVENTS: Final = Path(__file__).parent / "events"
# What no caller may ever see.
SECRETS: Final = (ACCOUNT, "arn:aws", "Traceback", ".py", "log_stream", "169.254.")
PAYLOAD_BYTES: Final = 6 * 1024 * 1024

AWS_ENV: Final = {
    "AWS_DEFAULT_REGION": "eu-west-1",
    "AWS_REGION": "eu-west-1",
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def event(name: str) -> dict[str, Any]:
    """One of tests/events by its file's name: AWS's published samples, with our photos in them."""
    value = json.loads((EVENTS / f"{name}.json").read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value


@dataclass(frozen=True)
class Context:
    """Lambda's context object, for calls within this process."""

    aws_request_id: str = "8f5d3c1a-0b5e-4d0c-9d3f-2a6d3c1b7e55"
    invoked_function_arn: str = FUNCTION_ARN
    log_stream_name: str = "2026/11/22/[$LATEST]log_stream"
    remaining_ms: int = 75_000

    def get_remaining_time_in_millis(self) -> int:
        return self.remaining_ms


# SageMaker's runtime endpoint.


@dataclass(frozen=True)
class Call:
    """An InvokeEndpoint request as it came over the wire."""

    endpoint: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def attributes(self) -> str:
        return self.headers.get("x-amzn-sagemaker-custom-attributes", "")


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


Behaviour = Callable[[Call], Reply | None]


def photo_answer(
    labels: Mapping[str, float] | None = None, *, confident: bool = True, heat_map: bytes = b"\x89PNG\r\n\x1a\n-"
) -> Behaviour:
    """A container that knows one answer (probabilities by label, best first), and one heat map."""
    shares = labels or {"Affenpinscher": 0.91, "Beagle": 0.06, "Chow_chow": 0.03}

    def behave(call: Call) -> Reply:
        if "explain=cam" in call.attributes:
            return Reply(200, heat_map, {"Content-Type": "image/png"})
        best, probability = next(iter(shares.items()))
        rows = [
            {"label": label, "index": index, "probability": share}
            for index, (label, share) in sorted(enumerate(shares.items()), key=lambda pair: -pair[1][1])
        ]
        answer = {
            "label": best,
            "probability": probability,
            "predictions": rows,
            "confident": confident,
            "model": {"architecture": "resnet18", "version": "3"},
        }
        return Reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    return behave


def model_error(status: int, body: str) -> Behaviour:
    """How SageMaker reports a container that answered with an error, or (status 0) not at all."""
    kind = "client" if 400 <= status < 500 else "server"
    content = {
        "Message": f'Received {kind} error ({status}) from primary with message "{body}". See https://eu-west-1.console'
        f".aws.amazon.com/cloudwatch in account {ACCOUNT} for more information.",
        "OriginalStatusCode": status,
        "OriginalMessage": body,
        "LogStreamArn": f"arn:aws:logs:eu-west-1:{ACCOUNT}:log-group:/aws/sagemaker/Endpoints/{ENDPOINT}",
    }
    return service_error(424, "ModelError", content)


def container_error(status: int, code: str, message: str) -> Behaviour:
    """A container's own error, in the shape that ours gives."""
    return model_error(status, json.dumps({"error": {"code": code, "message": message, "request_id": "1"}}))


def service_error(status: int, kind: str, content: Mapping[str, Any] | None = None) -> Behaviour:
    body = json.dumps(content or {"Message": f"Endpoint {ENDPOINT} of account {ACCOUNT}: {kind}"}).encode()
    return lambda call: Reply(status, body, {"x-amzn-ErrorType": kind, "Content-Type": "application/json"})


def forward(address: str) -> Behaviour:
    """Pass calls on to a container's /invocations, with the headers that SageMaker keeps, and wrap its errors."""

    def behave(call: Call) -> Reply:
        names = ("content-type", "accept", "x-amzn-sagemaker-custom-attributes", "x-amzn-sagemaker-inference-id")
        headers = {name: call.headers[name] for name in names if name in call.headers}
        connection = http.client.HTTPConnection(address, timeout=60)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # A refusal may come before the end of the body.
                connection.request("POST", "/invocations", call.body, headers)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status >= 400:
            reply = model_error(response.status, body.decode(errors="replace"))(call)
            assert reply is not None
            return reply
        return Reply(response.status, body, {"Content-Type": response.headers["Content-Type"]})

    return behave


class RuntimeStandIn:
    """`sagemaker-runtime` on a loopback port; `behave` may be exchanged at any time, None breaks the connection off."""

    def __init__(self, behave: Behaviour | None = None) -> None:
        self.behave: Behaviour = behave or photo_answer()
        self.calls: list[Call] = []
        self._server = _server(self._answer)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def env(self) -> dict[str, str]:
        return {**AWS_ENV, "ENDPOINT_NAME": ENDPOINT, "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": self.address}

    def _answer(self, request: BaseHTTPRequestHandler, body: bytes) -> Reply | None:
        parts = urlsplit(request.path).path.split("/")
        assert parts[1] == "endpoints" and parts[3:] == ["invocations"], request.path  # noqa: PT018 - one path
        assert request.headers["Authorization"].startswith("AWS4-HMAC-SHA256"), "the request is not signed"
        call = Call(unquote(parts[2]), {name.lower(): value for name, value in request.headers.items()}, body)
        self.calls.append(call)
        return self.behave(call)

    def __enter__(self) -> RuntimeStandIn:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _server(answer: Callable[[BaseHTTPRequestHandler, bytes], Reply | None]) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            reply = answer(self, body)
            if reply is None:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128  # Of 5, the default, callers that come at once are dropped, and some then reset.

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


# Lambda.


@dataclass(frozen=True)
class Invocation:
    """What came back from one call: the payload's bytes, and whether it is a function error."""

    payload: bytes
    failed: bool = False

    @property
    def value(self) -> Any:
        return json.loads(self.payload)


class Environment:
    """An execution environment: one real awslambdaric process, and the Runtime API that it asks for work."""

    def __init__(self, root: Path, env: Mapping[str, str], *, handler: str = "classify.handler") -> None:
        self._events: queue.Queue[tuple[str, bytes, int]] = queue.Queue()
        self._results: queue.Queue[Invocation] = queue.Queue()
        self._ready_at: float | None = None
        self._server = _server(self._answer)
        self._log = (root.parent / f"log-{uuid.uuid4().hex}.txt").open("w+b")
        started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "awslambdaric", handler],
            cwd=root,
            env={**_host_env(), **_lambda_env(root, self._server.server_port), **env},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        wait_until(lambda: self._ready_at or self.exit_code is not None, timeout_s=60, what="the function's init")
        self.init_s = (self._ready_at or time.monotonic()) - started
        used = psutil.Process(self._process.pid).cpu_times() if self.exit_code is None else None
        self.init_cpu_s = used.user + used.system if used else 0.0

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text(encoding="utf-8")

    @property
    def records(self) -> list[dict[str, Any]]:
        """The log's JSON lines."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def invoke(self, payload: bytes, *, timeout_s: int = 75) -> Invocation:
        self._events.put((str(uuid.uuid4()), payload, round((time.time() + timeout_s) * 1000)))
        return self._results.get(timeout=timeout_s)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=10)
        self._server.shutdown()
        self._server.server_close()
        self._log.close()

    def _answer(self, request: BaseHTTPRequestHandler, body: bytes) -> Reply | None:
        action = request.path.rpartition("/")[2]
        if action == "next":
            self._ready_at = self._ready_at or time.monotonic()  # Asked for the first time: the init is over.
            request_id, payload, deadline_ms = self._events.get()
            headers = {
                "Lambda-Runtime-Aws-Request-Id": request_id,
                "Lambda-Runtime-Deadline-Ms": str(deadline_ms),
                "Lambda-Runtime-Invoked-Function-Arn": FUNCTION_ARN,
                "Lambda-Runtime-Trace-Id": "Root=1-6921a0f0-0123456789abcdef01234567;Sampled=1",
                "Content-Type": "application/json",
            }
            return Reply(200, payload, headers)
        self._results.put(Invocation(body, failed=action == "error"))
        return Reply(202, b"{}")


def _host_env() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}


def _lambda_env(root: Path, port: int) -> dict[str, str]:
    return {
        "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{port}",
        "AWS_LAMBDA_FUNCTION_NAME": "function",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/function",
        "AWS_LAMBDA_LOG_STREAM_NAME": "2026/11/22/[$LATEST]0123456789abcdef",
        "LAMBDA_TASK_ROOT": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",  # /var/task cannot be written to.
    }


class ThrottledError(Exception):
    """More calls at once than the function's reserved concurrency."""


class Function:
    """A function as Lambda runs it: provisioned environments first, then others on demand, up to `reserved`."""

    def __init__(self, root: Path, env: Mapping[str, str], *, provisioned: int = 0, reserved: int = 10) -> None:
        self._root, self._env = root, env
        self._reserved = reserved
        self._lock = threading.Lock()
        warm = {**env, "AWS_LAMBDA_INITIALIZATION_TYPE": "provisioned-concurrency"}
        self.environments = [Environment(root, warm) for _ in range(provisioned)]
        self._idle = list(self.environments)
        self._starting = 0

    def invoke(self, value: Any) -> Invocation:
        """Raises ThrottledError."""
        environment = self._take()
        try:
            return environment.invoke(json.dumps(value).encode())
        finally:
            with self._lock:
                self._idle.append(environment)

    def _take(self) -> Environment:
        with self._lock:
            if self._idle:
                return self._idle.pop(0)
            if len(self.environments) + self._starting >= self._reserved:
                raise ThrottledError
            self._starting += 1
        environment = Environment(self._root, self._env)
        with self._lock:
            self._starting -= 1
            self.environments.append(environment)
        return environment

    def close(self) -> None:
        for environment in self.environments:
            environment.close()


@contextmanager
def function(root: Path, env: Mapping[str, str], *, provisioned: int = 0, reserved: int = 10) -> Iterator[Function]:
    made = Function(root, env, provisioned=provisioned, reserved=reserved)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def lambda_service(made: Function) -> Iterator[str]:
    """Lambda's own HTTP API (Invoke) on a loopback port, for boto3's client of `lambda`; its address."""

    def answer(request: BaseHTTPRequestHandler, body: bytes) -> Reply:
        assert request.path.endswith("/functions/function/invocations"), request.path
        if len(body) > PAYLOAD_BYTES:
            return _refused(413, "RequestTooLargeException")
        try:
            result = made.invoke(json.loads(body))
        except ThrottledError:
            return _refused(429, "TooManyRequestsException")
        return Reply(200, result.payload, {"X-Amz-Function-Error": "Unhandled"} if result.failed else {})

    server = _server(answer)
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _refused(status: int, kind: str) -> Reply:
    return Reply(status, json.dumps({"Type": "User", "message": kind}).encode(), {"x-amzn-ErrorType": kind})


@contextmanager
def function_url(invoke: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[str]:
    """A function URL before `invoke` on a loopback port; its address."""
    from local import web_server  # pytest has lambda/ on its path, a benchmark has not.

    server = web_server(0, invoke)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def body_of(response: Mapping[str, Any]) -> bytes:
    """The body of a proxy answer."""
    text = response["body"]
    return base64.b64decode(text) if response["isBase64Encoded"] else text.encode()
