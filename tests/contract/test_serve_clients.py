"""curl and wrk, clients that nobody here wrote, against a running `serve`."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.aws.tools import on_path
from tests.serving import CLASSES, PHOTO, Server, running_server, write_artifact
from tests.support import encoded, picture

# A POST of the photo, by wrk's own scripting.
WRK = """\
wrk.method = "POST"
wrk.headers["Content-Type"] = "image/jpeg"
local file = io.open("{photo}", "rb")
wrk.body = file:read("*a")
file:close()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("base")
    write_artifact(base / "model")
    with running_server(base) as server:
        yield server


def curl(server: Server, *words: str, path: str = "/invocations") -> tuple[int, str]:
    """The status and the body that curl saw."""
    command = [str(on_path("curl", "curl")), "--silent", "--show-error", "--write-out", "\n%{http_code}", *words]
    url = f"http://127.0.0.1:{server.port}{path}"
    done = subprocess.run([*command, url], capture_output=True, text=True, timeout=60, check=True)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("transfer", [(), ("--header", "Transfer-Encoding: chunked")], ids=["length", "chunked"])
def test_curl_is_answered_as_the_readme_says(
    server: Server, tmp_path: Path, size: str, transfer: tuple[str, ...]
) -> None:
    """A large body makes curl ask for leave first (Expect: 100-continue)."""
    photo = tmp_path / "dog.jpg"
    photo.write_bytes(PHOTO if size == "small" else encoded(picture(1200, 900).effect_spread(50), "BMP"))
    assert (photo.stat().st_size > 1024**2) == (size == "large")
    kind = "image/jpeg" if size == "small" else "image/bmp"
    status, body = curl(server, "--header", f"Content-Type: {kind}", *transfer, "--data-binary", f"@{photo}")
    assert status == 200, body
    assert json.loads(body)["label"] in CLASSES


def test_curl_sees_a_mistake_as_one(server: Server) -> None:
    status, body = curl(server, "--form", "photo=@-;filename=a.jpg")
    assert (status, json.loads(body)["error"]["code"]) == (415, "unsupported_media_type")
    assert curl(server, path="/ping")[0] == 200


def test_wrk_gets_nothing_but_answers(server: Server, tmp_path: Path) -> None:
    photo, script = tmp_path / "photo.jpg", tmp_path / "post.lua"
    photo.write_bytes(PHOTO)
    script.write_text(WRK.format(photo=photo))
    url = f"http://127.0.0.1:{server.port}/invocations"
    command = [str(on_path("wrk", "wrk")), "-t1", "-c8", "-d4s", "--timeout", "30s", "-s", str(script), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    answered = re.search(r"(\d+) requests in", done.stdout)
    assert answered, done.stdout
    assert int(answered[1]) > 0, done.stdout
    assert "Non-2xx" not in done.stdout, done.stdout
    assert "Socket errors" not in done.stdout, done.stdout
