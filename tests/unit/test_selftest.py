"""The selftest's judgements, and its engines on the network that it makes itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from container.contract import SageMakerPaths
from selftest import machine, programs
from selftest.engines import ANSWERS
from selftest.parity import agreement, gpus
from selftest.report import Finding, Verdict, findings, ok, summary, warning

ROOT = Path(__file__).resolve().parents[2]


def verdicts(found: Iterator[Finding]) -> dict[str, Verdict]:
    return {finding.name: finding.verdict for finding in found}


def test_a_check_that_breaks_is_a_failure_and_the_others_go_on() -> None:
    def broken() -> Iterator[Finding]:
        yield ok("first", "said before it broke")
        raise KeyError("odd")

    def whole() -> Iterator[Finding]:
        yield warning("last", "slow", "wait")

    found = list(findings([broken, whole]))
    assert [(finding.name, finding.verdict.value) for finding in found] == [
        *(("first", "ok"), ("broken", "failed"), ("last", "warning")),
    ]
    assert "KeyError: 'odd'" in found[1].text()
    assert found[2].text().splitlines()[1].strip() == "-> wait"
    assert summary(found) == "1 ok, 1 warning, 1 failed"


@pytest.mark.parametrize(("worst", "verdict"), [(1e-6, Verdict.OK), (0.1, Verdict.FAILED), (np.nan, Verdict.FAILED)])
def test_engines_must_agree_but_for_rounding(worst: float, verdict: Verdict) -> None:
    assert agreement("torch", worst, 1e-3).verdict is verdict


@pytest.mark.parametrize(
    ("answer", "devices", "verdict", "words"),
    [
        ({"gpus": [], "cuda_error": "no driver"}, 0, "ok", "none is seen"),
        ({"gpus": [], "cuda_error": "driver too old"}, 1, "failed", "driver too old"),
        ({"gpus": [], "cuda_build": None, "cuda_error": "not compiled"}, 1, "failed", "torch for CPUs alone"),
        ({"gpus": [{"name": "T4", "worst": 1e-3}]}, 1, "ok", "T4"),
        ({"gpus": [{"name": "T4", "worst": 1e-3}, {"name": "T4", "worst": 1}]}, 2, "failed", "differ by 1"),
    ],
)
def test_gpus_are_judged_by_what_torch_and_the_driver_say(
    answer: dict[str, Any], devices: int, verdict: str, words: str
) -> None:
    last = list(gpus({"cuda_build": "13.0", **answer}, devices=devices))[-1]
    assert last.verdict.value == verdict
    assert words in last.text()


def test_a_cpu_is_judged_by_its_features(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: Old One\nflags\t\t: fpu sse2 avx\n")
    (finding,) = machine.cpu(info)
    assert finding.verdict is (Verdict.WARNING if os.uname().machine == "x86_64" else Verdict.OK)
    assert "none of the features" in finding.what
    info.write_text("model name\t: New One\nflags\t\t: fpu avx2 avx512f avx512_vnni\n")
    (finding,) = machine.cpu(info)
    assert finding.verdict is Verdict.OK
    assert "New One: avx2 avx512f avx512_vnni" in finding.what


def test_memory_that_others_hold_is_a_warning(tmp_path: Path) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 99999999 kB\nMemAvailable:   102400 kB\n")
    (finding,) = machine.memory({}, info)
    assert finding.verdict is Verdict.WARNING
    assert "100 MiB are free" in finding.what


def test_settings_that_serving_refuses_fail() -> None:
    assert verdicts(machine.memory({"KENNEL_SERVE_TREADS": "2"})) == {"settings": Verdict.FAILED}


def test_absent_shared_memory_is_a_warning(tmp_path: Path) -> None:
    assert verdicts(machine.shared_memory(tmp_path / "nowhere")) == {"shared memory": Verdict.WARNING}


def test_folders_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    assert verdicts(machine.folders(SageMakerPaths(tmp_path))) == {"scratch": Verdict.OK, "folders": Verdict.OK}
    file = tmp_path / "file"  # Not even root makes a folder in it.
    file.touch()
    found = list(machine.folders(SageMakerPaths(file)))
    assert found[-1].verdict is Verdict.WARNING
    assert f"{file}/model, {file}/output, {file}/checkpoints" in found[-1].what


@pytest.mark.parametrize("check", [programs.java, programs.haproxy])
def test_a_program_of_another_version_fails(check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("java", "haproxy"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"'\necho 'HAProxy version 2.2.9'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    (finding,) = check()
    assert finding.verdict is Verdict.FAILED
    assert "serving needs" in finding.what


def test_missing_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = {finding.name: finding for finding in programs.programs()}
    assert found["programs"].verdict is Verdict.FAILED
    assert "train, serve, tune, doctor, import-weights" in found["programs"].what
    assert found["shell"].verdict is Verdict.WARNING


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=240)


def test_both_engines_answer_the_shipped_network_and_a_wrong_answer_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert _run("selftest.network", str(folder)).returncode == 0
    for engine in ("onnxruntime", "torch"):
        assert json.loads(_run("selftest.engines", engine, str(folder)).stdout)["worst"] < 1e-4
    answers = load_file(folder / ANSWERS)
    assert np.ptp(answers["logits"], axis=0).min() > 1e-3, "the answers must depend on the photos"
    save_file({**answers, "logits": answers["logits"] + 0.5}, folder / ANSWERS)
    answer = json.loads(_run("selftest.engines", "onnxruntime", str(folder)).stdout)
    assert answer["worst"] == pytest.approx(0.5, abs=1e-3)
