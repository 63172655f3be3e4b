"""The programs and packages of the image: there, able to start, of a version that was tried."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from container.errors import ConfigError
from selftest.report import Finding, failed, ok, warning
from serve import front, mms

_OURS: Final = ("train", "serve", "tune", "doctor", "import-weights")
# SageMaker's SDK starts its own scripts with them (ModelTrainer with source_code).
_EXPECTED: Final = ("bash", "python3", "pip")
_PACKAGES: Final = (
    *("torch", "torchvision", "onnxruntime", "numpy", "pillow", "safetensors"),
    *("sagemaker-training", "multi-model-server", "boto3"),
)
_BROKEN: Final = "this image is not whole: build it again, or pull it again by its digest"
_ABSENT: Final = f"if PATH was replaced, put it right; else {_BROKEN}"
_OLDEST_JAVA: Final = 17
_OLDEST_HAPROXY: Final = (2, 6)
_PATIENCE_S: Final = 60


def programs() -> Iterator[Finding]:
    missing = [name for name in _OURS if shutil.which(name) is None]
    if missing:
        yield failed("programs", f"not on PATH: {', '.join(missing)}", _ABSENT)
    else:
        yield ok("programs", " ".join(_OURS))
    missing = [name for name in _EXPECTED if shutil.which(name) is None]
    if missing:
        advice = "jobs that bring code of their own need them: put PATH right"
        yield warning("shell", f"not on PATH: {', '.join(missing)}", advice)


def packages() -> Iterator[Finding]:
    found = {name: _version(name) for name in _PACKAGES}
    missing = [name for name, version in found.items() if version is None]
    if missing:
        yield failed("packages", f"not installed: {', '.join(missing)}", _BROKEN)
    versions = " ".join(f"{name} {version}" for name, version in found.items() if version)
    yield ok("versions", f"kennel {_version('kennel') or '(a checkout)'} python {platform.python_version()} {versions}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def java() -> Iterator[Finding]:
    try:
        says = _says([mms.java(), "-Xmx32m", "-version"])
        jar = mms.frontend() / "model-server.jar"
    except ConfigError as error:
        yield failed("java", str(error), _ABSENT)
        return
    except OSError as error:
        yield failed("java", f"does not start: {error}", "serving needs it: give the container more memory")
        return
    version = re.search(r'version "(\d+)', says)
    if version is None or int(version[1]) < _OLDEST_JAVA or not jar.is_file():
        needed = f"Java {_OLDEST_JAVA} or later and {jar}"
        yield failed("java", f"says {_first_line(says)!r}; serving needs {needed}", _BROKEN)
    else:
        yield ok("java", _first_line(says))


def haproxy() -> Iterator[Finding]:
    """Its version, and whether it takes the configuration that `serve` would give it."""
    try:
        program = front.haproxy()
        says = _says([program, "-v"])
        with tempfile.TemporaryDirectory(prefix="kennel-") as folder:
            problem = _says([program, "-c", "-q", "-f", str(_configuration(Path(folder)))])
    except ConfigError as error:
        yield failed("haproxy", str(error), _ABSENT)
        return
    except OSError as error:
        yield failed("haproxy", f"cannot be tried: {error}", "serving needs it, and a /tmp to write to: --tmpfs /tmp")
        return
    version = re.search(r"version (\d+)\.(\d+)", says)
    if version is None or (int(version[1]), int(version[2])) < _OLDEST_HAPROXY:
        yield failed("haproxy", f"says {_first_line(says)!r}; serving needs 2.6 or later", _BROKEN)
    elif "[ALERT]" in problem:
        yield failed("haproxy", f"refuses our configuration: {_first_line(problem)}", "please report this")
    else:
        yield ok("haproxy", _first_line(says))


def _configuration(folder: Path) -> Path:
    config = front.FrontConfig(
        port=8080,
        folder=folder,
        mms=f"unix@{folder}/mms.sock",
        control=f"unix@{folder}/control.sock",
        slots=2,
        large_bodies=2,
        queue_length=64,
        max_connections=256,
        most_bodies=64,
        max_payload_bytes=1024**2,
        queue_s=10,
        work_s=45,
        load_s=300,
    )
    config.loaded_models.write_text("")
    path = folder / "haproxy.cfg"
    path.write_text(front.configuration(config))
    return path


def _says(command: Sequence[str]) -> str:
    """Both streams of a program, whatever its exit code."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    return done.stdout + done.stderr


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "nothing")
