"""CPU and memory limits of both cgroup versions, and the one sum of memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from container.errors import ConfigError
from serve.config import ServeConfig
from serve.machine import MIB, Machine
from serve.shape import choose_shape

HOST_CPUS = len(os.sched_getaffinity(0))
DEFAULTS = ServeConfig.from_env({})
RESNET50 = 98 * MIB


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_cgroup_v2_limits_are_read(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000",
            "sys/fs/cgroup/a/cpu.max": "50000 100000",
            "sys/fs/cgroup/a/b/memory.max": str(512 * MIB),
            "sys/fs/cgroup/a/memory.max": "max",
        },
    )
    assert Machine.read(root) == Machine(cpus=0.5, memory_bytes=512 * MIB)
    assert Machine.read(root).cores == 1


def test_cgroup_v1_limits_are_read_where_the_path_is_the_host_s(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "90000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(1024 * MIB),
        },
    )
    assert Machine.read(root) == Machine(cpus=0.9, memory_bytes=1024 * MIB)


def test_without_limits_the_host_s_are_taken(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "2:cpu:/\n4:memory:/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        },
    )
    machine = Machine.read(root)
    assert machine.cpus == HOST_CPUS
    assert machine.memory_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_two_cores_get_two_workers_of_two_threads() -> None:
    shape = choose_shape(DEFAULTS, Machine(cpus=2, memory_bytes=8192 * MIB), RESNET50)
    assert (shape.workers, shape.threads) == (2, 2)


def test_a8_76_the_smallest_serverless_container_fits() -> None:
    shape = choose_shape(DEFAULTS, Machine(cpus=1, memory_bytes=1024 * MIB), RESNET50)
    assert (shape.workers, shape.threads) == (1, 1)
    assert shape.total_mib <= 1024


def test_the_queue_of_bodies_fits_in_half_the_heap() -> None:
    shape = choose_shape(DEFAULTS, Machine(cpus=4, memory_bytes=16384 * MIB), RESNET50)
    assert (shape.workers + shape.large_bodies) * DEFAULTS.max_payload_mib <= shape.heap_mib / 2


def test_less_memory_gives_fewer_workers_before_it_is_refused() -> None:
    roomy = choose_shape(DEFAULTS, Machine(cpus=4, memory_bytes=16384 * MIB), RESNET50)
    tight = choose_shape(DEFAULTS, Machine(cpus=4, memory_bytes=2048 * MIB), RESNET50)
    assert roomy.workers == 4
    assert 1 <= tight.workers < 4
    assert tight.total_mib <= 2048


def test_a_limit_that_cannot_fit_is_refused_with_the_figures() -> None:
    with pytest.raises(ConfigError, match=r"may use 512 MiB .* needs \d+ MiB .*SAGEMAKER_MAX_PAYLOAD_IN_MB \(now 25\)"):
        choose_shape(DEFAULTS, Machine(cpus=2, memory_bytes=512 * MIB), RESNET50)


def test_a_number_of_workers_that_was_asked_for_is_kept_or_refused() -> None:
    asked = ServeConfig.from_env({"SAGEMAKER_MODEL_SERVER_WORKERS": "3", "KENNEL_SERVE_THREADS": "1"})
    shape = choose_shape(asked, Machine(cpus=2, memory_bytes=8192 * MIB), RESNET50)
    assert (shape.workers, shape.threads) == (3, 1)
    with pytest.raises(ConfigError, match="SAGEMAKER_MODEL_SERVER_WORKERS"):
        choose_shape(asked, Machine(cpus=2, memory_bytes=1024 * MIB), RESNET50)


@pytest.mark.parametrize(("visible", "gpus"), [(None, 2), ("0", 1), ("0,1", 2), ("", 0), ("-1", 0), ("GPU-a,GPU-b", 2)])
def test_a6_66_gpus_are_counted_as_far_as_they_may_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, gpus: int
) -> None:
    root = tree(tmp_path, {"dev/nvidia0": "", "dev/nvidia1": "", "dev/nvidiactl": "", "proc/self/cgroup": ""})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert Machine.read(root).gpus == gpus


def test_a_gpu_has_one_worker() -> None:
    shape = choose_shape(DEFAULTS, Machine(cpus=8, memory_bytes=32768 * MIB, gpus=1), RESNET50)
    assert (shape.workers, shape.gpus) == (1, 1)
