"""The machine and the container's settings: cores, memory, shared memory, folders that can be written."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from container.contract import SageMakerPaths
from container.errors import ConfigError
from selftest.report import Finding, failed, ok, warning
from serve.config import ServeConfig
from serve.machine import MIB, Machine
from serve.shape import choose_shape
from train.workers import largest_batch_bytes, worker_count

# What makes networks fast, in the order in which CPUs learnt it.
_FEATURES: Final = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
# A ResNet-50 in float32, and training's default batch of its photos.
_NETWORK_BYTES: Final = 102 * 10**6
_BATCH_BYTES: Final = largest_batch_bytes(batch_size=32, crop_size=224)


def cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Iterator[Finding]:
    machine, text = Machine.read(), cpuinfo.read_text(encoding="utf-8", errors="replace")
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    has = set(listed[1].split()) if listed else set()
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    useful = " ".join(name for name in _FEATURES if name in has) or "none of the features that speed networks up"
    what = f"{machine.cpus:g} of {os.cpu_count()} CPUs, {model[1] if model else platform.machine()}: {useful}"
    if platform.machine() == "x86_64" and "avx2" not in has:
        yield warning("cpu", what, "without AVX2 training and serving are several times slower: take a newer machine")
    else:
        yield ok("cpu", what)


def memory(env: Mapping[str, str] = os.environ, meminfo: Path = Path("/proc/meminfo")) -> Iterator[Finding]:
    """Whether a ResNet-50 can be served in what this container may use, as `serve` itself would plan it."""
    machine = Machine.read()
    free = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo.read_text(encoding="ascii"), re.MULTILINE)
    free_mib = min(int(free[1]) // 1024 if free else 0, machine.memory_bytes // MIB)
    what = f"{machine.memory_bytes // MIB} MiB may be used, {free_mib} MiB are free"
    try:
        config = ServeConfig.from_env(env)
    except ConfigError as error:
        yield failed("settings", str(error), "correct these variables: serve refuses to start with them")
        return
    try:
        shape = choose_shape(config, machine, _NETWORK_BYTES)
    except ConfigError as error:
        yield warning("memory", f"{what}; a ResNet-50 cannot be served in it", str(error))
        return
    plan = f"a ResNet-50 would get {shape.workers} worker(s) of {shape.threads} thread(s) in {shape.total_mib} MiB"
    if free_mib < shape.total_mib:
        yield warning("memory", f"{what}; {plan}", "end what else runs here, or give the machine more memory")
    else:
        yield ok("memory", f"{what}; {plan}")


def shared_memory(folder: Path = Path("/dev/shm")) -> Iterator[Finding]:  # noqa: S108 - nothing is put there
    """Whether training's loaders fit, as training itself would judge for a batch of 32 photos."""
    size = f"{folder} has {shutil.disk_usage(folder).total // MIB} MiB" if folder.is_dir() else f"{folder} is absent"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        workers = worker_count(-1, batch_bytes=_BATCH_BYTES, cuda=False, shared_memory=folder)
    if said.getvalue():
        yield warning("shared memory", size, said.getvalue().strip().removeprefix("warning: "))
    else:
        yield ok("shared memory", f"{size}, room for {workers} loader process(es) of training")


def folders(paths: SageMakerPaths | None = None) -> Iterator[Finding]:
    """Serving needs a folder for temporary files; training needs to leave its model."""
    try:
        with tempfile.NamedTemporaryFile(prefix="kennel-") as file:
            file.write(bytes(MIB))
            file.flush()
        yield ok("scratch", f"{tempfile.gettempdir()} can be written, {_free_mib(tempfile.gettempdir())} MiB are free")
    except OSError as error:
        advice = "training and serving need one: docker run --tmpfs /tmp"
        yield failed("scratch", f"no folder for temporary files can be written: {error}", advice)
    paths = paths or SageMakerPaths.from_env()
    wanted = (paths.model, paths.output, paths.checkpoints)
    closed = [str(folder) for folder in wanted if not _can_be_written(folder)]
    if closed:
        advice = f"serving does not need them; to train, mount folders there: docker run -v $PWD/model:{paths.model} …"
        yield warning("folders", f"{', '.join(closed)} cannot be written by user {os.getuid()}", advice)
    else:
        yield ok("folders", f"{paths.base} can be written by user {os.getuid()}")


def _free_mib(folder: str) -> int:
    return shutil.disk_usage(folder).free // MIB


def _can_be_written(folder: Path) -> bool:
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    return os.access(nearest, os.W_OK | os.X_OK)
