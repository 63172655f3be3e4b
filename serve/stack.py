"""HAProxy, MMS and control as one: planned together, started, watched, drained."""

from __future__ import annotations

import resource
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from container.artifact import Manifest, find_artifact, load_manifest, verify_files
from container.contract import DRAIN_S
from container.errors import ConfigError, ServingError
from serve import front, mms
from serve.config import ServeConfig
from serve.control import Control
from serve.front import FrontConfig
from serve.logs import log
from serve.machine import Machine
from serve.mms import MmsPlace
from serve.processes import Processes
from serve.shape import Shape, choose_shape

_TICK_S = 0.25
# A worker's own timer runs out after the front's, so that the front is the one to answer; MMS's is later still.
_WORKER_GRACE_S = 1.0
# A killed worker is back within 2 s of its loading time; a model that has no worker for this long is lost.
_LOST_AFTER_S = 60.0
_MOST_CONNECTIONS = 4096
_QUEUE_PER_WORKER = 32


@dataclass(frozen=True, kw_only=True)
class Stack:
    """What one `serve` runs; `native` is the folder of Netty's library, None where only TCP is left."""

    config: ServeConfig
    artifact: Path
    manifest: Manifest
    shape: Shape
    place: MmsPlace
    native: Path | None
    control: Control

    @classmethod
    def plan(cls, config: ServeConfig, folder: Path) -> Stack:
        """Decide everything that can be decided before a process is started; raises ConfigError or ArtifactError."""
        if not _is_free("0.0.0.0", config.port):  # noqa: S104  the platform calls from outside
            raise ConfigError(f"port {config.port} is taken; stop what listens there, or set SAGEMAKER_BIND_TO_PORT")
        manifest = load_manifest(config.paths.model)
        artifact = find_artifact(config.paths.model)
        machine = Machine.read()
        shape = choose_shape(config, machine, manifest.files[manifest.network].bytes)
        log(
            "serve",
            f"{shape.workers} worker(s) of {shape.threads} thread(s), ONNX Runtime on {machine.cpus:g} CPUs",
            engine="onnxruntime",
            network=manifest.network,
            cpus=machine.cpus,
            memory_limit_mib=machine.memory_bytes >> 20,
            memory_planned_mib=shape.total_mib,
            memory_reason=shape.reason,
        )
        native = mms.native_folder(folder)
        place = _place(config, folder, native)
        control = Control(folder, work_s=config.work_s + _WORKER_GRACE_S, info=lambda: _info(config, manifest))
        return cls(
            config=config,
            artifact=artifact,
            manifest=manifest,
            shape=shape,
            place=place,
            native=native,
            control=control,
        )

    def start(self, processes: Processes, env: Mapping[str, str]) -> None:
        """Start control, then HAProxy, so that /ping is answered from the first moment, then MMS."""
        self.control.await_backend(lambda: _listens(self.place.inference))
        self.control.start()
        folder = self.place.folder
        (folder / "haproxy.cfg").write_text(front.configuration(self._front()))
        processes.start("front", [front.haproxy(), "-db", "-q", "-f", str(folder / "haproxy.cfg")], env=env)
        settings = {
            "artifact": str(self.artifact),
            "threads": self.shape.threads,
            "timeout_s": self.config.work_s + _WORKER_GRACE_S,
            "control": str(self.control.workers_address),
        }
        properties = mms.properties(
            self.place, self.shape, max_payload_bytes=self.config.max_payload_bytes, work_s=self.config.work_s
        )
        mms.prepare(self.place, settings, properties)
        processes.start("mms", mms.command(self.place, self.shape, self.native), env=mms.environment(env))

    def verify(self) -> None:
        """Compare the artifact with its manifest while Java starts; raises ArtifactError."""
        verify_files(self.artifact, self.manifest)

    def _front(self) -> FrontConfig:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return FrontConfig(
            port=self.config.port,
            mms=self.place.inference.replace("unix:", "unix@").removeprefix("http://"),
            control=f"unix@{self.control.http_address}",
            workers=self.shape.workers,
            large_bodies=self.shape.large_bodies,
            queue_length=self.shape.workers * _QUEUE_PER_WORKER,
            # HAProxy needs two files a connection and some of its own.
            max_connections=_MOST_CONNECTIONS if files < 0 else max(64, min(_MOST_CONNECTIONS, (files - 100) // 2)),
            max_payload_bytes=self.config.max_payload_bytes,
            queue_s=self.config.queue_s,
            work_s=self.config.work_s,
        )

    def watch(self, processes: Processes) -> None:
        """Return when SIGTERM asks to stop; raises ServingError for what does not heal."""
        ready_at: float | None = None
        started = seen = time.monotonic()
        while not processes.stop_asked:
            processes.wait(_TICK_S)
            self._check_children(processes)
            self.control.fleet.kill_stuck()
            now = time.monotonic()
            if self.control.ready():
                seen = now
                if ready_at is None:
                    ready_at = now
                    log("serve", "ready", seconds=round(now - started, 3), port=self.config.port)
            elif ready_at is None and now - started > self.config.startup_timeout_s:
                raise ServingError(
                    f"the model was not ready within {self.config.startup_timeout_s:g} s (SAGEMAKER_STARTUP_TIMEOUT)"
                )
            elif ready_at is not None and now - seen > _LOST_AFTER_S:
                raise ServingError(f"no worker has been able to answer for {_LOST_AFTER_S:g} s; the container ends")

    def _check_children(self, processes: Processes) -> None:
        fleet = self.control.fleet
        if fleet.failure:
            raise ServingError(fleet.failure)
        if fleet.orphaned():
            raise ServingError(
                "the process of multi-model-server that starts workers is gone, and it starts no other; "
                "the container ends so that the platform starts it anew"
            )
        for name, words in (("mms", "multi-model-server (Java)"), ("front", "HAProxy")):
            code = processes.exit_code(name)
            if code is not None and not processes.stop_asked:
                raise ServingError(f"{words} ended with code {code}; the container ends, since nothing is served")

    def drain(self, processes: Processes) -> None:
        """Answer what was accepted, for at most DRAIN_S, while /ping says 503."""
        self.control.draining = True
        log("serve", "draining")
        deadline = time.monotonic() + DRAIN_S - 1
        processes.signal("front", signal.SIGUSR1)
        while processes.exit_code("front") is None and time.monotonic() < deadline:
            processes.wait(_TICK_S)


def _info(config: ServeConfig, manifest: Manifest) -> dict[str, Any]:
    return {
        "model": {"architecture": manifest.architecture, "version": manifest.version, "created": manifest.created},
        "class_names": list(manifest.class_names),
        "metrics": dict(manifest.metrics),
        "limits": {"max_payload_bytes": config.max_payload_bytes, "deadline_s": config.deadline_s},
    }


def _place(config: ServeConfig, folder: Path, native: Path | None) -> MmsPlace:
    if native:
        return MmsPlace(folder=folder, inference=f"unix:{folder}/mms.sock", management=f"unix:{folder}/management.sock")
    log("serve", "no folder for Netty's library can be executed from: MMS uses TCP, and workers the ports from 9000 on")
    first, second = _free_ports(config.safe_ports)
    _require_free(9000)
    return MmsPlace(folder=folder, inference=f"http://127.0.0.1:{first}", management=f"http://127.0.0.1:{second}")


def _free_ports(allowed: range | None) -> tuple[int, int]:
    # MMS takes no port of 32767 or above.
    free = [port for port in allowed or range(20000, 32000) if port < 32767 and _is_free("127.0.0.1", port)][:2]
    if len(free) < 2:
        raise ConfigError(f"there are no two free ports below 32767 in SAGEMAKER_SAFE_PORT_RANGE ({allowed})")
    return free[0], free[1]


def _require_free(port: int) -> None:
    if not _is_free("127.0.0.1", port):
        raise ConfigError(
            f"port {port} is taken, which multi-model-server needs for its workers where /tmp is mounted noexec; "
            "mount /tmp with exec, or stop what listens there"
        )


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _listens(address: str) -> bool:
    scheme, _, rest = address.partition(":")
    family = socket.AF_UNIX if scheme == "unix" else socket.AF_INET
    with socket.socket(family) as probe:
        probe.settimeout(0.5)
        try:
            if family == socket.AF_UNIX:
                probe.connect(rest)
            else:
                host, port = rest.removeprefix("//").split(":")
                probe.connect((host, int(port)))
        except OSError:
            return False
    return True
