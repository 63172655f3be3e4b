"""HAProxy, MMS and control as one: planned together, started, watched, drained."""

from __future__ import annotations

import math
import resource
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from itertools import islice
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric

from container.artifact import Manifest, find_artifact, load_manifest, verify_files
from container.contract import DRAIN_S
from container.errors import ConfigError, ServingError
from container.preprocessing import MAX_PIXELS
from serve import front, mms
from serve.api import MAX_INSTANCES
from serve.config import ServeConfig
from serve.control import Control
from serve.front import FIGURES, FrontConfig, FrontRuntime
from serve.logs import log
from serve.machine import Machine, driver_version
from serve.metrics import answers, exposition, gauge
from serve.mms import MODEL, MmsPlace
from serve.models import Models, memory_for_models
from serve.processes import Processes
from serve.routes import Routes
from serve.shape import Shape, choose_multi_model_shape, choose_shape
from serve.unix import request

_TICK_S = 0.25
# A worker's own timer runs out after the front's, so that the front is the one to answer; MMS's is later still.
_WORKER_GRACE_S = 1.0
# A killed worker is back within 2 s of its loading time; a model that has no worker for this long is lost.
_LOST_AFTER_S = 60.0
# How often Java is asked whether it still answers, and how long it may leave that open: a full collection takes time.
_ASK_EVERY_S = 1.0
_SILENT_S = 3.0
# What a load may take beside MMS's own time: an artifact's files are read and compared with its manifest.
_VERIFY_S = 60
_MOST_CONNECTIONS = 4096
_QUIET_S = 2.0
# Of batch transform: MaxConcurrentTransforms x MaxPayloadInMB is at most 100 MB.
_BATCH_MIB = 100


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What is served in single-model mode."""

    folder: Path
    manifest: Manifest


class Stack:
    """What one `serve` runs, below one private folder."""

    def __init__(self, config: ServeConfig, folder: Path) -> None:
        """Decide all that can be decided before a process is started; raises ConfigError or ArtifactError."""
        if not _is_free("0.0.0.0", config.port):  # noqa: S104  the platform calls from outside
            raise ConfigError(f"port {config.port} is taken; stop what listens there, or set SAGEMAKER_BIND_TO_PORT")
        self._config = config
        self._artifact = None if config.multi_model else _open_artifact(config)
        self._machine = Machine.read()
        self._shape = _choose_shape(config, self._machine, self._artifact)
        self._native = mms.native_folder(folder)
        self._place = _place(config, folder, self._native)
        self._control = Control(folder, work_s=config.work_s + _WORKER_GRACE_S)
        self._front = self._front_config()
        self._models = self._open_models() if config.multi_model else None
        self._verified = False
        self._draining = False
        self._mms_answered_at = -math.inf

    def start(self, processes: Processes, env: Mapping[str, str]) -> None:
        """Start control, then HAProxy, so that /ping is answered from the first moment, then MMS."""
        routes = Routes(
            ready=self.ready,
            healthy=self.healthy,
            info=self.info,
            execution_parameters=self.execution_parameters,
            metrics=self.metrics,
            models=self._models,
        )
        self._control.start(routes.answer)
        text = self._place.folder / "haproxy.cfg"
        text.write_text(front.configuration(self._front))
        self._front.loaded_models.write_text("")
        processes.start("front", [front.haproxy(), "-db", "-f", str(text)], env=env, noise=front.NOISE)
        properties = mms.properties(
            self._place,
            self._shape,
            max_payload_bytes=self._config.max_payload_bytes,
            timeout_s=self._mms_timeout_s(),
            multi_model=self._config.multi_model,
        )
        mms.prepare(self._place, properties)
        if self._artifact:
            settings = {**self._worker_settings(), "artifact": str(self._artifact.folder)}
            mms.write_settings(self._place.model(MODEL), settings)
        processes.start(
            "mms", mms.command(self._place, self._shape, self._native), env=mms.environment(env, self._place)
        )

    def verify(self) -> None:
        """Compare the artifact with its manifest while Java starts; raises ArtifactError."""
        if self._artifact:
            verify_files(self._artifact.folder, self._artifact.manifest)
        self._verified = True

    def ready(self) -> bool:
        """What /ping says: requests are answered, and no stop is under way."""
        return self.healthy() and not self._draining

    def healthy(self) -> bool:
        """The artifact is whole, a worker can answer (with many models, once one is loaded), and MMS hands it requests.

        What HAProxy checks: it gives no queued request to a server that is down, so a stop must not change it.
        """
        able = self._models is not None or self._control.fleet.ready(MODEL)
        return self._verified and able and self._mms_answers()

    def _mms_answers(self) -> bool:
        """Whether MMS has answered lately; a stopped Java still accepts connections."""
        asked_at = time.monotonic()
        if asked_at - self._mms_answered_at > _ASK_EVERY_S and mms.answers(self._place):
            self._mms_answered_at = time.monotonic()
        return time.monotonic() - self._mms_answered_at < _SILENT_S

    def info(self) -> dict[str, Any]:
        """What /info answers."""
        answer: dict[str, Any] = {"multi_model": self._models is not None, "limits": self._limits()}
        if self._models:
            models = self._models.all()
            return {**answer, "models": {model.name: self._describe(model.manifest, model.name) for model in models}}
        assert self._artifact is not None  # noqa: S101  there is one in this mode
        return {**answer, **self._describe(self._artifact.manifest, MODEL)}

    def _limits(self) -> dict[str, float]:
        return {
            "max_payload_bytes": self._config.max_payload_bytes,
            "max_pixels": MAX_PIXELS,
            "max_instances": MAX_INSTANCES,
            "deadline_s": self._config.deadline_s,
            "queue_length": self._shape.queue_length,
        }

    def _describe(self, manifest: Manifest, model: str) -> dict[str, Any]:
        return {
            "model": {"architecture": manifest.architecture, "version": manifest.version, "created": manifest.created},
            "class_names": list(manifest.class_names),
            "metrics": dict(manifest.metrics),
            "precision": manifest.precision,
            "confidence_threshold": manifest.confidence_threshold,
            "embedding_length": self._control.fleet.embedding_lengths.get(model),
        }

    def metrics(self) -> bytes:
        """What /metrics answers: workers' figures, ours, and HAProxy's."""
        try:
            _, figures = request(f"unix:{self._front.figures}", "GET", FIGURES, timeout_s=2)
            counted = FrontRuntime(self._front).answered()
        except (OSError, HTTPException):
            figures, counted = b"", {}  # HAProxy is on its way out.
        return exposition(self._place.metrics, lambda: [answers(counted), *self._gauges()]) + figures

    def _gauges(self) -> Iterator[Metric]:
        fleet = self._control.fleet
        workers = Counter(worker.model for worker in fleet.all())
        by_model = [({"model": model}, count) for model, count in workers.items()]
        yield gauge("kennel_workers", "Workers that are loaded", by_model)
        yield gauge("kennel_workers_ended", "Workers that have ended since the start unasked", [({}, fleet.ended)])
        yield gauge("kennel_ready", "What /ping says: 1 for 200", [({}, self.ready())])
        served = {model.name: model.manifest for model in self._models.all()} if self._models else {}
        if self._artifact:
            served = {MODEL: self._artifact.manifest}
        infos = [
            ({"model": name, "architecture": manifest.architecture, "version": manifest.version}, 1)
            for name, manifest in served.items()
        ]
        yield gauge("kennel_model_info", "What is served under a name", infos)

    def execution_parameters(self) -> dict[str, Any]:
        """How batch transform should call: as many calls at once as there are workers, one photo each."""
        payload_mib = min(self._config.max_payload_mib, max(1, _BATCH_MIB // self._shape.slots))
        return {
            "MaxConcurrentTransforms": min(self._shape.slots, _BATCH_MIB // payload_mib),
            "BatchStrategy": "SINGLE_RECORD",
            "MaxPayloadInMB": payload_mib,
        }

    def watch(self, processes: Processes) -> None:
        """Return when SIGTERM asks to stop; raises ServingError for what does not heal."""
        ready_at: float | None = None
        started = seen = time.monotonic()
        while not processes.stop_asked:
            processes.wait(_TICK_S)
            self._check(processes)
            now = time.monotonic()
            if self.ready():
                seen = now
                if ready_at is None:
                    ready_at = now
                    log("serve", "ready", seconds=round(now - started, 3), port=self._config.port)
            elif ready_at is None and now - started > self._config.startup_timeout_s:
                raise ServingError(f"not ready within {self._config.startup_timeout_s:g} s (SAGEMAKER_STARTUP_TIMEOUT)")
            elif ready_at is not None and now - seen > _LOST_AFTER_S:
                silence = "no worker has been able to answer"
                if not self._mms_answers():
                    silence = "multi-model-server (Java) has not answered"
                raise ServingError(f"{silence} for {_LOST_AFTER_S:g} s; the container ends")

    def _check(self, processes: Processes) -> None:
        fleet = self._control.fleet
        for name, words in (("mms", "multi-model-server (Java)"), ("front", "HAProxy")):
            code = processes.exit_code(name)
            if code is not None and not processes.stop_asked:
                raise ServingError(f"{words} ended with code {code}; the container ends, since nothing is served")
        fleet.kill_stuck()
        if self._models:
            self._models.mend()
        elif failure := fleet.failures.get(MODEL):
            raise ServingError(failure)
        elif fleet.orphaned_models():
            raise ServingError(
                "the process of multi-model-server that starts workers is gone, and it starts no other; "
                "the container ends so that the platform starts it anew"
            )

    def drain(self, processes: Processes) -> None:
        """Answer what was accepted, for at most DRAIN_S, while nothing new is.

        A client that keeps its connection may have sent a request at this moment: it has _QUIET_S to be heard.
        """
        self._draining = True
        log("serve", "draining")
        runtime = FrontRuntime(self._front)
        deadline = time.monotonic() + DRAIN_S - 1
        with suppress(OSError):  # Not yet there, or gone.
            runtime.stop_listening()
            quiet_until = time.monotonic() + _QUIET_S
            while runtime.requests() or (runtime.connections() and time.monotonic() < quiet_until):
                if time.monotonic() > deadline:
                    log("serve", "the time to drain is over", unanswered=runtime.requests())
                    return
                if runtime.requests():
                    quiet_until = time.monotonic() + _QUIET_S
                processes.wait(_TICK_S)

    def _front_config(self) -> FrontConfig:
        return FrontConfig(
            port=self._config.port,
            folder=self._place.folder,
            mms=self._place.inference.replace("unix:", "unix@").removeprefix("http://"),
            control=f"unix@{self._control.http_address}",
            slots=self._shape.slots,
            large_bodies=self._shape.large_bodies,
            queue_length=self._shape.queue_length,
            most_bodies=self._shape.most_bodies,
            max_connections=_max_connections(self._machine),
            max_payload_bytes=self._config.max_payload_bytes,
            queue_s=self._config.queue_s,
            work_s=self._config.work_s,
            load_s=self._mms_timeout_s() + _VERIFY_S,
            multi_model=self._config.multi_model,
        )

    def _mms_timeout_s(self) -> int:
        return mms.call_timeout_s(work_s=self._config.work_s, startup_s=self._config.startup_timeout_s)

    def _worker_settings(self) -> dict[str, Any]:
        return {
            "workers": self._shape.workers,
            "threads": self._shape.threads,
            "timeout_s": self._config.work_s + _WORKER_GRACE_S,
            "control": str(self._control.workers_address),
            "max_payload_bytes": self._config.max_payload_bytes,
            "default_accept": self._config.default_accept,
        }

    def _open_models(self) -> Models:
        return Models(
            folder=self._config.paths.models,
            memory_mib=memory_for_models(self._machine.memory_bytes, self._shape.total_mib),
            workers=self._shape.workers,
            on_gpu=self._shape.gpus > 0,
            settings=self._worker_settings(),
            place=self._place,
            fleet=self._control.fleet,
            front=FrontRuntime(self._front),
            load_timeout_s=self._mms_timeout_s(),
            drain_timeout_s=self._config.deadline_s,
        )


def _max_connections(machine: Machine) -> int:
    """As many as HAProxy's files (two a connection) allow, and a quarter of the memory if each filled its buffer."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    by_files = _MOST_CONNECTIONS if files < 0 else max(64, (files - 100) // 2)
    by_memory = max(256, machine.memory_bytes // (4 * front.BUFFER_BYTES))
    return min(_MOST_CONNECTIONS, by_files, by_memory)


def _open_artifact(config: ServeConfig) -> Artifact:
    return Artifact(folder=find_artifact(config.paths.model), manifest=load_manifest(config.paths.model))


def _choose_shape(config: ServeConfig, machine: Machine, artifact: Artifact | None) -> Shape:
    if artifact:
        manifest = artifact.manifest
        shape = choose_shape(config, machine, manifest.files[manifest.network].bytes)
    else:
        shape = choose_multi_model_shape(config, machine)
    engine = "torch" if machine.gpus else "ONNX Runtime"
    log(
        "serve",
        f"{engine}, {shape.workers} worker(s) a model of {shape.threads} thread(s)",
        reason=_reason(config, machine, shape),
        network=artifact.manifest.network if artifact else None,
        cpus=machine.cpus,
        gpus=machine.gpus,
        driver=driver_version() or None,
        memory_limit_mib=machine.memory_bytes >> 20,
        memory_planned_mib=shape.total_mib,
        memory_reason=shape.reason,
    )
    return shape


def _reason(config: ServeConfig, machine: Machine, shape: Shape) -> str:
    """Why this engine, so many workers, and so many threads."""
    if machine.gpus:
        engine, wanted, each = f"{machine.gpus} GPU(s) can be seen", machine.gpus, "GPU"
    else:
        engine, wanted, each = "no GPU can be seen", machine.cores, "core"
    if config.workers:
        workers = "workers as SAGEMAKER_MODEL_SERVER_WORKERS says"
    elif config.multi_model:
        workers = "one worker a model, so that many fit"
    else:
        workers = f"one worker a {each}" + (", fewer to fit in memory" if shape.workers < wanted else "")
    threads = "threads as KENNEL_SERVE_THREADS says" if config.threads else "a thread a core, at most 4, none spinning"
    return f"{engine}; {workers}; {threads}"


def _place(config: ServeConfig, folder: Path, native: Path | None) -> MmsPlace:
    if native:
        return MmsPlace(folder=folder, inference=f"unix:{folder}/mms.sock", management=f"unix:{folder}/management.sock")
    log("serve", "no folder for Netty's library can be executed from: MMS uses TCP, and workers the ports from 9000 on")
    if config.safe_ports and 9000 not in config.safe_ports:
        raise ConfigError(
            "multi-model-server needs the ports from 9000 on for its workers where /tmp is mounted noexec, and "
            "SAGEMAKER_SAFE_PORT_RANGE leaves them out; mount /tmp with exec"
        )
    first, second = _free_ports(config.safe_ports or range(20000, 32000), taken=config.port)
    _require_free(9000)
    return MmsPlace(folder=folder, inference=f"http://127.0.0.1:{first}", management=f"http://127.0.0.1:{second}")


def _free_ports(allowed: range, *, taken: int) -> tuple[int, int]:
    """The highest two, far from MMS's workers, that are not to be ours; MMS takes no port of 32767 or above."""
    free = (port for port in reversed(allowed) if port < 32767 and port != taken and _is_free("127.0.0.1", port))
    found = list(islice(free, 2))
    if len(found) < 2:
        raise ConfigError(
            f"there are no two free ports below 32767 beside {taken} in SAGEMAKER_SAFE_PORT_RANGE ({allowed})"
        )
    return found[0], found[1]


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
