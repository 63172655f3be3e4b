"""The demo where no container engine can be had: the same programs as processes, and their environment."""

from __future__ import annotations

import ensurepip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import demo
from deploy.demo_data import hold_out, photos_by_class
from deploy.programs import ROOT, Host
from tests.training import write_digits


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_an_engine_it_trains_serves_and_asks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base, held_out = tmp_path / "opt-ml", tmp_path / "held-out"
    classes = photos_by_class(write_digits(tmp_path / "digits", per_class=60))
    for folder in ("input/data", "model", "output"):
        (base / folder).mkdir(parents=True)
    hold_out(classes, training=base / "input/data/training", held_out=held_out)
    host = Host(Path(sys.executable))
    demo.train(host, base, demo.DIGITS)
    answers = demo.serve_and_ask(host, base, held_out)
    assert len(answers) == 36
    demo.show(answers, base)
    demo.judge(answers, least=0.8)
    assert f"epoch {demo.EPOCHS}/{demo.EPOCHS}" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_machine_without_a_compiler_leaves_out_the_package_that_needs_one(tmp_path: Path) -> None:
    programs, environment, requirements = (tmp_path / name for name in ("bin", "environment", "requirements.txt"))
    programs.mkdir()
    for name in ("awk", "grep", "mkdir", "cat"):
        (programs / name).symlink_to(str(shutil.which(name)))
    (programs / "python3.11").symlink_to(Path(sys.base_prefix, "bin", "python3.11").resolve())
    digest = "    --hash=sha256:" + "0" * 64
    lock = [f"pip=={ensurepip.version()} \\", digest, "sagemaker-training==5.1.1 \\", digest]
    requirements.write_text("\n".join(lock) + "\n")
    done = subprocess.run(
        ["/bin/sh", ROOT / "deploy/setup.sh", environment, requirements],
        env={"PATH": str(programs), "HOME": os.environ["HOME"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "there is no C compiler" in done.stderr
    assert (environment / "share/requirements.txt").read_text().splitlines() == lock[:2]
