"""Run the image on the real engine, as tests need it: to its end, or as a server."""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.support import free_port, wait_until

# As container/build.sh reads it.
IMAGE = os.environ.get("IMAGE", "kennel:latest")
ROOT = Path(__file__).resolve().parent.parent


def find_engine() -> str | None:
    """The engine that `make image` would use, where one answers."""
    found = subprocess.run([ROOT / "container/engine.sh", "find"], capture_output=True, text=True)
    return found.stdout.strip() or None


@dataclass(frozen=True)
class Engine:
    """A container engine; every container gets a name of its own, so that only ours are ever ended."""

    command: str

    def __call__(self, *arguments: str, check: bool = True, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.command, *arguments], check=check, capture_output=True, text=True, timeout=timeout_s, errors="replace"
        )

    def run(
        self, *command: str, options: Sequence[str] = (), timeout_s: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run the image to its end; the exit code is the container's."""
        return self("run", "--rm", *options, IMAGE, *command, check=False, timeout_s=timeout_s)

    @contextlib.contextmanager
    def started(self, *command: str, options: Sequence[str] = ()) -> Iterator[Container]:
        """Run the image in the background; it is removed at the end, whatever happened."""
        container = Container(self, f"kennel-test-{uuid.uuid4().hex[:12]}")
        self("run", "--detach", "--name", container.name, *options, IMAGE, *command)
        try:
            yield container
        finally:
            self("rm", "--force", "--volumes", container.name)


@dataclass(frozen=True)
class Container:
    """A container that a test started."""

    engine: Engine
    name: str

    def logs(self) -> str:
        result = self.engine("logs", self.name)
        return result.stdout + result.stderr

    def stop(self, grace_s: int = 30) -> int:
        """SIGTERM, and SIGKILL after `grace_s`; returns the exit code."""
        self.engine("stop", "--time", str(grace_s), self.name)
        return self.wait()

    def wait(self, timeout_s: float = 120) -> int:
        return int(self.engine("wait", self.name, timeout_s=timeout_s).stdout)

    def exec(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self.engine("exec", self.name, *command, check=False)

    def is_running(self) -> bool:
        return self.engine("inspect", "--format", "{{.State.Running}}", self.name).stdout.strip() == "true"


@dataclass(frozen=True)
class Server:
    """A serving container and its address."""

    container: Container
    url: str
    env: Mapping[str, str] = field(default_factory=dict)

    def post(self, content: bytes, content_type: str = "application/octet-stream", **headers: str) -> httpx.Response:
        return httpx.post(
            f"{self.url}/invocations", content=content, headers={"Content-Type": content_type, **headers}, timeout=70
        )

    def post_all(self, contents: Sequence[bytes], content_type: str = "application/octet-stream") -> list[int]:
        """Statuses of as many calls at once."""
        with ThreadPoolExecutor(len(contents)) as pool:
            return [
                answer.status_code for answer in pool.map(lambda content: self.post(content, content_type), contents)
            ]

    def ping(self) -> int | None:
        try:
            return httpx.get(f"{self.url}/ping", timeout=2).status_code
        except httpx.TransportError:
            return None

    def wait_until_ready(self, timeout_s: float = 90) -> None:
        def ready() -> bool:
            if not self.container.is_running():
                raise AssertionError(f"the server ended: {self.container.logs()}")
            return self.ping() == 200

        try:
            wait_until(ready, timeout_s=timeout_s, what=f"{self.url}/ping")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.container.logs()}") from error


@contextlib.contextmanager
def serving(engine: Engine, model: Path, *, options: Sequence[str] = (), ready: bool = True) -> Iterator[Server]:
    """`docker run -p … -v model:/opt/ml/model:ro kennel serve` on a free port of 127.0.0.1."""
    port = free_port()
    options = ["--publish", f"127.0.0.1:{port}:8080", "--volume", f"{model}:/opt/ml/model:ro", *options]
    with engine.started("serve", options=options) as container:
        server = Server(container, f"http://127.0.0.1:{port}")
        if ready:
            server.wait_until_ready()
        yield server
