"""Whether the engines of this machine answer as those of the machine that built the image."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from container.artifact import load_manifest, verify_files
from container.errors import KennelError
from selftest.engines import FOLDER
from selftest.report import Finding, failed, ok, warning
from serve.machine import Machine

# Of max(1, |logit|): correct engines add the same numbers in other orders. GPUs round inputs to TF32.
_TOLERANCE: Final = 1e-3
_GPU_TOLERANCE: Final = 2e-2
_PATIENCE_S: Final = 120
_ENDINGS: Final = {
    signal.SIGKILL: "it was killed, most likely for want of memory: give the container more (docker run --memory)",
    signal.SIGILL: "this CPU lacks an instruction that it uses: take a newer machine",
}


class EngineError(Exception):
    """An engine gave no answer; the second argument is what to do about it."""


def parity() -> Iterator[Finding]:
    """ONNX Runtime, torch, and what torch sees of GPUs."""
    if FOLDER.is_dir():
        yield from _engines(FOLDER)
        return
    with tempfile.TemporaryDirectory(prefix="kennel-") as scratch:
        folder = Path(scratch) / "model"
        _run("selftest.network", str(folder))
        yield warning("network", "no network ships with this installation: one was made here", "use the image")
        yield from _engines(folder)


def _engines(folder: Path) -> Iterator[Finding]:
    try:
        verify_files(folder, load_manifest(folder))
    except KennelError as error:
        yield failed("network", str(error), "the image is damaged: pull it again by its digest")
        return
    yield from _onnxruntime(folder)
    yield from _torch(folder)


def _onnxruntime(folder: Path) -> Iterator[Finding]:
    try:
        answer = _run("selftest.engines", "onnxruntime", str(folder))
    except EngineError as error:
        yield failed("onnxruntime", *error.args)
    else:
        yield agreement("onnxruntime", answer["worst"], _TOLERANCE)


def _torch(folder: Path) -> Iterator[Finding]:
    try:
        answer = _run("selftest.engines", "torch", str(folder))
    except EngineError as error:
        yield failed("torch", *error.args)
        return
    yield agreement("torch", answer["worst"], _TOLERANCE, f", instructions {answer['cpu']}")
    yield from gpus(answer, devices=Machine.read().gpus)


def agreement(name: str, worst: float, tolerance: float, more: str = "") -> Finding:
    """`worst` is a share of max(1, |logit|)."""
    if worst <= tolerance:
        return ok(name, f"answers as where the image was built (logits differ by {worst:.1g} at most){more}")
    what = f"logits differ by {worst:.2g} from those where the image was built; {tolerance:g} is rounding"
    return failed(name, what, "do not trust answers from this machine; please report its CPU and this line")


def gpus(answer: dict[str, Any], *, devices: int) -> Iterator[Finding]:
    """From torch's answer and the number of the driver's device files."""
    build = f"CUDA {answer['cuda_build']}" if answer["cuda_build"] else "CPUs alone"
    for gpu in answer["gpus"]:
        yield agreement("gpu", gpu["worst"], _GPU_TOLERANCE, f", {gpu['name']}, torch for {build}")
    if answer["gpus"]:
        return
    if devices and answer["cuda_build"]:
        what = f"{devices} device(s) of NVIDIA's driver, which torch for {build} cannot use: {answer['cuda_error']}"
        yield failed("gpu", what, "take a host whose driver knows that CUDA (on SageMaker: InferenceAmiVersion)")
    elif devices:
        what = f"{devices} device(s) of NVIDIA's driver, and torch for {build}"
        yield failed("gpu", what, "build the image with TORCH=cuda, or set CUDA_VISIBLE_DEVICES= to use the CPU")
    else:
        yield ok("gpu", f"none is seen, the CPU does it all (torch for {build}; with a GPU: docker run --gpus all)")


def _run(module: str, *arguments: str) -> dict[str, Any]:
    """Run one of our programs; return the JSON that it prints. Raises EngineError(what, advice)."""
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        raise EngineError(f"gave no answer within {_PATIENCE_S} s", "is the machine overloaded?") from None
    if done.returncode < 0:
        number = signal.Signals(-done.returncode)
        raise EngineError(f"ended by {number.name}", _ENDINGS.get(number, "please report this with the machine's CPU"))
    if done.returncode > 0:
        words = done.stderr.strip().splitlines() or ["nothing"]
        advice = "mend what failed above first; if that was nothing, pull the image again by its digest"
        raise EngineError(f"failed; its last words: {words[-1]}", advice)
    return dict(json.loads(done.stdout or "{}"))
