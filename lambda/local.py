"""The page and the function on this machine, in front of a running container (`make page`). Not in the zip."""

from __future__ import annotations

import argparse
import base64
import http.client
import sys
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from classifier import Classifier
from classify import Application
from config import Config
from endpoint import Answer, Buckets, Endpoint, refusal_of_model
from errors import Refusal
from photos import Photo
from urls import Fetcher

_TIMEOUT_S: Final = 70
# What the container takes by default; the page scales larger photos down itself.
_MAX_BODY_BYTES: Final = 25_000_000

Answerer = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class ContainerEndpoint:
    """A container's own HTTP API, as an endpoint: `address` is host:port."""

    address: str

    def is_ready(self) -> bool:
        try:
            return self._call("GET", "/ping", b"", {})[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def invoke(self, photo: Photo, *, accept: str, attributes: str, request_id: str) -> Answer:
        """Raises Refusal, for the same reasons as an endpoint on SageMaker."""
        headers = {
            "Accept": accept,
            "Content-Type": photo.content_type,
            "X-Amzn-SageMaker-Custom-Attributes": attributes,
            "X-Amzn-SageMaker-Inference-Id": request_id,
        }
        try:
            status, content_type, body = self._call("POST", "/invocations", photo.data, headers)
        except (OSError, http.client.HTTPException) as error:
            message = f"the container at {self.address} does not answer"
            raise Refusal(502, "endpoint_unreachable", message) from error
        if status != 200:
            raise refusal_of_model(status, body.decode(errors="replace"))
        return Answer(body, content_type)

    def _call(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection(self.address, timeout=_TIMEOUT_S)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # A refusal may come before the end of the body.
                connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            return response.status, response.headers.get("Content-Type", ""), response.read()
        finally:
            connection.close()


@dataclass(frozen=True)
class LocalContext:
    aws_request_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def get_remaining_time_in_millis(self) -> int:
        return _TIMEOUT_S * 1000


def application(endpoint: Endpoint) -> Application:
    config = Config(endpoint_name="local", function_timeout_s=_TIMEOUT_S)
    buckets = Buckets(config.allowed_buckets, timeout_s=config.fetch_timeout_s)
    fetcher = Fetcher(allowed_hosts=config.allowed_url_hosts, timeout_s=config.fetch_timeout_s)
    return Application(Classifier(config=config, endpoint=endpoint, buckets=buckets, fetcher=fetcher))


def function_url_event(method: str, target: str, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """The event that a function URL makes of a request (payload format 2.0)."""
    url = urlsplit(target)
    query = dict(parse_qsl(url.query, keep_blank_values=True))
    return {
        "version": "2.0",
        "rawPath": url.path,
        "rawQueryString": url.query,
        "headers": {name.lower(): value for name, value in headers.items()},
        **({"queryStringParameters": query} if query else {}),
        "requestContext": {"http": {"method": method, "path": url.path, "protocol": "HTTP/1.1"}},
        **({"body": base64.b64encode(body).decode()} if body else {}),
        "isBase64Encoded": bool(body),
    }


def web_server(port: int, answer: Answerer) -> ThreadingHTTPServer:
    """A server on 127.0.0.1 that hands each request to `answer` as a function URL does."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "0")
            if not length.isdecimal() or int(length) > _MAX_BODY_BYTES:
                self.close_connection = True
                self.send_error(413)
                return
            body = self.rfile.read(int(length))
            self._reply(answer(function_url_event(self.command, self.path, dict(self.headers), body)))

        do_GET = do_HEAD = do_OPTIONS = do_PUT = do_DELETE = do_POST

        def _reply(self, response: Mapping[str, Any]) -> None:
            text = response["body"]
            body = base64.b64decode(text) if response["isBase64Encoded"] else text.encode()
            self.send_response(response["statusCode"])
            for name, value in {**response["headers"], "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """The function's own record, a line a request, is enough."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main() -> None:
    parser = argparse.ArgumentParser(description="Show the page for a container that serves on this machine.")
    parser.add_argument("--container", default="127.0.0.1:8080", metavar="HOST:PORT")
    parser.add_argument("--port", type=int, default=8081, help="where the page is shown (default: 8081)")
    arguments = parser.parse_args()
    endpoint = ContainerEndpoint(arguments.container.removeprefix("http://").rstrip("/"))
    if not endpoint.is_ready():
        sys.exit(
            f"no container answers at {endpoint.address}; start one, e.g. docker run --rm -p 127.0.0.1:8080:8080 "
            "-v $PWD/demo/opt-ml/model:/opt/ml/model:ro kennel serve"
        )
    function = application(endpoint)
    try:
        server = web_server(arguments.port, lambda event: function.handle(event, LocalContext()))
    except OSError as error:
        sys.exit(f"the page cannot be shown on port {arguments.port} ({error.strerror}); choose another with --port")
    with server:
        print(f"the page is at http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
