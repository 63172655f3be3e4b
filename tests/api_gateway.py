"""API Gateway as `sam local start-api` runs it, before a function that runs elsewhere; for .venv-sam's Python.

    .venv-sam/bin/python tests/api_gateway.py PORT FUNCTION BINARY...

FUNCTION is the URL of Lambda's Invoke, BINARY the binary media types. /rest is a REST API, /http-1 and /http-2 are
HTTP APIs with that version of the payload. What makes the events and judges the answers is AWS's own code.
"""

from __future__ import annotations

import sys
import urllib.request
from typing import Any

from samcli.lib.providers.provider import Api
from samcli.local.apigw.local_apigw_service import LocalApigwService
from samcli.local.apigw.route import Route

ROUTES = {"/rest": (Route.API, None), "/http-1": (Route.HTTP, "1.0"), "/http-2": (Route.HTTP, "2.0")}


class Elsewhere:
    """Stands where SAM's own runner of functions in containers stands."""

    def __init__(self, function: str) -> None:
        self._function = function

    def is_debugging(self) -> bool:
        return False

    def invoke(self, name: str, event: str, *, stdout: Any, stderr: Any, tenant_id: Any) -> None:
        request = urllib.request.Request(self._function, event.encode(), {"Content-Type": "application/json"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - on this machine
            stdout.write_str(answer.read().decode())


def main() -> None:
    port, function, *binary = sys.argv[1:]
    routes = [
        Route("function", path, ["ANY"], event_type=kind, payload_format_version=version)
        for path, (kind, version) in ROUTES.items()
    ]
    api = Api(routes)
    api.binary_media_types_set = set(binary)
    service = LocalApigwService(api, Elsewhere(function), port=int(port))
    service.create()
    service.run()


if __name__ == "__main__":
    main()
