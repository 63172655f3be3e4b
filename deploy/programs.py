"""Run the image's two programs, in a container or, where no engine can be had, without one."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

ROOT = Path(__file__).resolve().parent.parent
# As container/build.sh reads it.
IMAGE = os.environ.get("IMAGE", "kennel:latest")


class Programs(Protocol):
    """`train` and `serve`, wherever they run; `base` stands for /opt/ml."""

    @property
    def where(self) -> str: ...

    def train(self, base: Path, arguments: Sequence[str]) -> subprocess.Popen[str]: ...

    def serve(self, base: Path, port: int) -> contextlib.AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Container:
    """The image on an engine, as the user that calls, so that the files belong to that user."""

    engine: str
    where: str = "in the container"

    def train(self, base: Path, arguments: Sequence[str]) -> subprocess.Popen[str]:
        mounts = [("input/data", ":ro"), ("model", ""), ("output", "")]
        options = [*_user(self.engine), *_volumes(base, mounts)]
        return _piped([self.engine, "run", "--rm", *options, IMAGE, "train", *arguments])

    @contextlib.contextmanager
    def serve(self, base: Path, port: int) -> Iterator[None]:
        publish = ["--publish", f"127.0.0.1:{port}:8080"]
        command = [
            self.engine,
            "run",
            "--detach",
            *_user(self.engine),
            *publish,
            *_volumes(base, [("model", ":ro")]),
            IMAGE,
            "serve",
        ]
        name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        try:
            yield
        except Exception:
            subprocess.run([self.engine, "logs", "--tail", "20", name])
            raise
        finally:
            subprocess.run([self.engine, "stop", "--time", "30", name], check=True, capture_output=True)
            subprocess.run([self.engine, "rm", name], check=True, capture_output=True)


@dataclass(frozen=True)
class Host:
    """The same programs as processes of this machine: Java and HAProxy come as wheels."""

    python: Path
    where: str = "without a container"

    def train(self, base: Path, arguments: Sequence[str]) -> subprocess.Popen[str]:
        return _piped([str(self.python), "-m", "train", *arguments], env=self._env(base))

    @contextlib.contextmanager
    def serve(self, base: Path, port: int) -> Iterator[None]:
        env = self._env(base) | {"SAGEMAKER_BIND_TO_PORT": str(port)}
        log = base / "serve.log"
        with log.open("w") as output:
            server = subprocess.Popen([self.python, "-m", "serve"], env=env, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield
        except Exception:
            print(f"the server's log is {log}", flush=True)
            raise
        finally:
            server.terminate()
            server.wait(timeout=30)

    def _env(self, base: Path) -> dict[str, str]:
        return os.environ | {"SAGEMAKER_BASE_DIR": str(base), "PYTHONPATH": str(ROOT)}


def container_or_host(*, engine: bool) -> Programs:
    """Build the image where an engine can be had; else make the environment of packages that replaces it."""
    if engine and (command := _ensure_engine()):
        subprocess.run([ROOT / "container/build.sh"], check=True)
        return Container(command)
    print("no container engine can be had: the same programs run without one", flush=True)
    environment = ROOT / ".venv"
    subprocess.run([ROOT / "deploy/setup.sh", environment, ROOT / "tests/requirements.txt"], check=True)
    return Host(environment / "bin/python")


def find_engine() -> str | None:
    """A docker or podman that answers now; nothing is started or installed for it."""
    return subprocess.run([ROOT / "container/engine.sh", "find"], capture_output=True, text=True).stdout.strip() or None


def _ensure_engine() -> str:
    return subprocess.run([ROOT / "container/engine.sh", "ensure"], stdout=subprocess.PIPE, text=True).stdout.strip()


def wait_until_ready(url: str, *, timeout_s: float) -> None:
    """Poll GET /ping until it answers 200; raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/ping", timeout=2).status_code == httpx.codes.OK:
                return
        time.sleep(0.2)
    raise TimeoutError(f"{url}/ping did not answer 200 within {timeout_s} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _piped(command: Sequence[str], env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=sys.stderr, text=True)


def _user(engine: str) -> list[str]:
    # The root of a rootless engine's containers is the caller already, and any other user a stranger to the folders.
    if os.getuid() == 0 or is_rootless(engine):
        return []
    return ["--user", f"{os.getuid()}:{os.getgid()}"]


def is_rootless(engine: str) -> bool:
    """Whether docker or podman, by what its `info` says, runs as the user that calls it."""
    template = "{{.Host.Security.Rootless}}" if Path(engine).name == "podman" else "{{.SecurityOptions}}"
    said = subprocess.run([engine, "info", "--format", template], capture_output=True, text=True).stdout
    return "name=rootless" in said or said.strip() == "true"


def _volumes(base: Path, mounts: Sequence[tuple[str, str]]) -> list[str]:
    return [word for folder, mode in mounts for word in ("--volume", f"{base / folder}:/opt/ml/{folder}{mode}")]
