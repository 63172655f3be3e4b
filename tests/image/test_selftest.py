"""`docker run kennel selftest` on good and on bad machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.containers import Engine

pytestmark = pytest.mark.image

CHECKS = (
    *("programs", "versions", "java", "haproxy", "cpu", "memory", "shared memory", "scratch", "folders"),
    *("onnxruntime", "torch", "gpu"),
)
# Serverless endpoints, and less: no network, nothing to write to but /tmp, little memory.
NARROW = (
    *("--user", "65534:65534", "--read-only", "--tmpfs", "/tmp", "--network", "none"),
    *("--memory", "1g", "--memory-swap", "1g", "--shm-size", "1m", "--cap-drop", "ALL"),
)


def verdicts(report: str) -> dict[str, str]:
    """The verdict of each check, by its name."""
    lines = [line for line in report.splitlines() if line.startswith(("ok ", "warning ", "failed "))]
    return {line[9:23].strip(): line.split()[0] for line in lines}


def test_a_whole_image_on_a_plain_machine_passes(engine: Engine) -> None:
    done = engine.run("selftest", options=("--shm-size", "1g"))
    assert done.returncode == 0, done.stdout + done.stderr
    # A GPU and the memory are the machine's own.
    assert {name: verdicts(done.stdout)[name] for name in CHECKS if name not in ("gpu", "memory")} == {
        name: "ok" for name in CHECKS if name not in ("gpu", "memory")
    }, done.stdout
    assert set(verdicts(done.stdout)) == set(CHECKS)


def test_it_works_where_little_is_allowed_and_says_what_is_missing(engine: Engine) -> None:
    done = engine.run("selftest", options=NARROW)
    assert done.returncode == 0, done.stdout + done.stderr
    found = verdicts(done.stdout)
    assert [name for name, verdict in found.items() if verdict == "failed"] == []
    assert (found["shared memory"], found["folders"]) == ("warning", "warning")
    assert "--shm-size" in done.stdout
    assert "1024 MiB may be used" in done.stdout
    assert "user 65534" in done.stdout


def test_a_path_without_haproxy_and_nowhere_to_write_fail(engine: Engine) -> None:
    path = "/opt/kennel/bin:/opt/venv/bin:/usr/bin:/bin"  # Debian's haproxy lies in /usr/sbin.
    done = engine.run("selftest", options=("--env", f"PATH={path}", "--read-only", "--user", "65534"))
    assert done.returncode == 1
    found = verdicts(done.stdout)
    assert (found["haproxy"], found["scratch"], found["java"]) == ("failed", "failed", "ok")
    assert "there is no HAProxy" in done.stdout
    assert "--tmpfs /tmp" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_damaged_network_and_odd_settings_fail(engine: Engine, tmp_path: Path) -> None:
    damaged = tmp_path / "model.onnx"
    damaged.write_bytes(b"no network")
    where = "/opt/kennel/lib/python3.11/site-packages/selftest/model/model.onnx"
    settings = ("--env", "SAGEMAKER_MODEL_SERVER_WORKERS=many")
    done = engine.run("selftest", options=("--volume", f"{damaged}:{where}:ro", *settings))
    assert done.returncode == 1
    assert (verdicts(done.stdout)["network"], verdicts(done.stdout)["settings"]) == ("failed", "failed")
    assert "SAGEMAKER_MODEL_SERVER_WORKERS is 'many'" in done.stdout


def test_an_engine_that_runs_out_of_memory_is_a_finding(engine: Engine) -> None:
    """torch takes more than this to load; the selftest itself goes on."""
    done = engine.run("selftest", options=("--memory", "160m", "--memory-swap", "160m"))
    assert done.returncode == 1
    assert verdicts(done.stdout)["torch"] == "failed"
    assert "killed, most likely for want of memory" in done.stdout
    assert verdicts(done.stdout)["memory"] == "warning"
