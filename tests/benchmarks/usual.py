"""multi-model-server as AWS's toolkits run it, with tests/benchmarks/usual_handler.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serve import mms
from tests.support import free_port


@dataclass(frozen=True)
class Usual:
    """A running server; the process is Java, its children are MMS's workers."""

    process: subprocess.Popen[bytes]
    port: int


def model_folder(weights: Path, folder: Path) -> Path:
    """What is loaded: the handler beside the weights."""
    folder.mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "usual_handler.py", folder / "usual_handler.py")
    shutil.copy(weights, folder / "model.pth")
    return folder


@contextmanager
def running(models: list[Path], architecture: str, *, workers: int, threads: int) -> Iterator[Usual]:
    """Start it with the folders `models`; not waited for."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        loaded = ",".join(f"model{number}={path}" for number, path in enumerate(models))
        (Path(folder) / "mms.properties").write_text(
            f"inference_address=http://127.0.0.1:{port}\nmanagement_address=http://127.0.0.1:{free_port()}\n"
            f"model_store=/\nload_models={loaded}\ndefault_service_handler=usual_handler:handle\n"
            f"default_workers_per_model={workers}\ndefault_response_timeout_seconds=120\ndecode_input_request=false\n"
            f"max_request_size=30000000\nmax_response_size=30000000\nasync_logging=true\n"
        )
        home = mms.frontend().parent.parent
        command = [mms.java(), "-Xmx512m", f"-Djava.io.tmpdir={folder}", f"-Dmodel_server_home={home}"]
        command += ["-cp", str(mms.frontend() / "model-server.jar"), "com.amazonaws.ml.mms.ModelServer"]
        command += ["--python", sys.executable, "--mms-config", f"{folder}/mms.properties"]
        env = {
            **os.environ,
            "BENCHMARK_ARCHITECTURE": architecture,
            "BENCHMARK_THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
            "LOG_LOCATION": folder,
            "METRICS_LOCATION": folder,
        }
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, process_group=0
        )
        try:
            yield Usual(process, port)
        finally:
            os.killpg(process.pid, 9)
            process.wait()
