"""Mixed load at 70 % of what the server can do: no growth of memory, no 5xx but 503 with Retry-After.

KENNEL_SOAK_SECONDS=3600 (`make soak`) makes an hour of it.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import threading
import time
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from serve.api import ATTRIBUTES_HEADER
from tests.resnets import write_resnet
from tests.serving import PHOTO, Server, running_server
from tests.support import encoded, odd_photos, picture

SECONDS = float(os.environ.get("KENNEL_SOAK_SECONDS", "180"))
CLIENTS = 6
# Until Java's and malloc's pools are full: half a minute is too short, whatever the length of the run.
WARM_UP_S = max(SECONDS / 6, 100)
GROWTH = 1.05
# The second is judged: the first has shares of files' pages, which change as other processes come and go.
KINDS = ("Pss", "Pss_Anon")


@cache
def requests() -> list[tuple[bytes, dict[str, str]]]:
    """Photos of all kinds, and one bad input in five."""
    good = [(photo, {"Content-Type": "application/octet-stream"}) for photo in odd_photos().values()]
    good += [(encoded(picture(500, 375, seed), "JPEG"), {"Content-Type": "image/jpeg"}) for seed in range(6)]
    instances = json.dumps({"instances": [{"b64": base64.b64encode(PHOTO).decode()}, {"b64": "bm8="}]}).encode()
    good += [(instances, {"Content-Type": "application/json"}), (PHOTO, {"Accept": "text/csv"})]
    good += [(PHOTO, {ATTRIBUTES_HEADER: options}) for options in ("explain=cam", "embed=true", "top_k=2")]
    bad = [
        (b"no photo", {"Content-Type": "image/jpeg"}),
        # Large: Java's heap has its full size within the warm-up.
        (b"no photo" * 2**18, {"Content-Type": "image/jpeg"}),
        (PHOTO[:300], {"Content-Type": "image/jpeg"}),
        (PHOTO, {"Content-Type": "text/plain"}),
        (b"{", {"Content-Type": "application/json"}),
        (PHOTO, {ATTRIBUTES_HEADER: "top_k=no"}),
        (encoded(Image.new("1", (16_000, 16_000))), {"Content-Type": "image/png"}),
    ]
    return good + bad


class Load:
    """Clients that each call at `rate` a second (None: as fast as they are answered)."""

    def __init__(self, server: Server, rate: float | None) -> None:
        self.outcomes: Counter[str] = Counter()
        self._server = server
        self._pause_s = 0.0 if rate is None else 1 / rate
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(CLIENTS)]

    def run(self, seconds: float) -> None:
        for thread in self._threads:
            thread.start()
        time.sleep(seconds)
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _client(self, number: int) -> None:
        chosen, calls = random.Random(number), requests()
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=60)
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due += self._pause_s
            body, headers = chosen.choice(calls)
            connection.request("POST", "/invocations", body, headers)
            response = connection.getresponse()
            response.read()
            kept = response.status == 503 and response.headers["Retry-After"]
            self.outcomes["shed" if kept else str(response.status)] += 1
        connection.close()


def memory_mib(root: int, kind: str) -> Counter[str]:
    """A figure of `smaps_rollup` of a process and all below it, by program."""
    total: Counter[str] = Counter()
    for line in Path(f"/proc/{root}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            total[Path(f"/proc/{root}/comm").read_text().strip()] += int(line.split()[1]) // 1024
    for path in Path(f"/proc/{root}/task").glob("*/children"):
        for child in path.read_text().split():
            total += memory_mib(int(child), kind)
    return total


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 1.5 + 120)
def test_mixed_load_at_70_percent_grows_nothing_and_breaks_nothing(tmp_path: Path) -> None:
    write_resnet(tmp_path / "model")
    requests()  # Made once, before the time runs.
    with running_server(tmp_path) as server:
        flat_out = Load(server, None)
        flat_out.run(SECONDS / 6)
        rate = 0.7 * sum(flat_out.outcomes.values()) / (SECONDS / 6)
        Load(server, rate / CLIENTS).run(WARM_UP_S)
        before = {kind: memory_mib(server.process.pid, kind) for kind in KINDS}
        steady = Load(server, rate / CLIENTS)
        steady.run(SECONDS * 5 / 6 - WARM_UP_S)
        after = {kind: memory_mib(server.process.pid, kind) for kind in KINDS}
    sizes = "; ".join(f"{kind} {dict(before[kind])} -> {dict(after[kind])}" for kind in KINDS)
    print(f"{rate:.0f} requests/s, MiB {sizes}; {dict(steady.outcomes)}")
    assert not {status for status in steady.outcomes if status.startswith("5")}
    assert {"200", "400", "415", "422"} <= set(steady.outcomes)
    assert after["Pss_Anon"].total() < before["Pss_Anon"].total() * GROWTH
