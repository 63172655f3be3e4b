"""How many workers of how many threads, and the one sum that all memory must fit in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from container.errors import ConfigError
from serve.config import ServeConfig
from serve.machine import MIB, Machine

# Measured with `make bench`, rounded up: resident memory before the first request.
_JVM_MIB = 96
_FRONT_MIB = 24
_SERVE_MIB = 32
_WORKER_MIB = 64
# ONNX Runtime keeps the weights, packs them for its kernels, and needs room for activations.
_NETWORK_FACTOR = 2.5
# container.preprocessing decodes up to 64 megapixels: 4 bytes each, as RGBA.
_PHOTO_MIB = 256
# More threads than this gain little on one 224 x 224 photo.
_MAX_THREADS = 4
# Bodies too large for the front's buffer may arrive at MMS side by side, so that a slow one delays no other.
_LARGE_BODIES = (8, 4, 2, 1)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes that belong together; `large_bodies` are those that may be on their way to MMS beside the workers'."""

    workers: int
    threads: int
    large_bodies: int
    heap_mib: int
    direct_mib: int
    total_mib: int
    reason: str


def choose_shape(config: ServeConfig, machine: Machine, network_bytes: int) -> Shape:
    """The largest shape that fits; raises ConfigError with the figures where not even the smallest does.

    One worker a core, each with several threads and ONNX Runtime's spinning off: on 2 cores, two workers of two
    threads gave both the latency of one wide worker and the throughput of two narrow ones.
    """
    limit_mib = machine.memory_bytes // MIB
    shape = None
    for workers, large_bodies in _candidates(config, machine):
        shape = _shape(config, machine, workers, large_bodies, network_bytes)
        if shape.total_mib <= limit_mib:
            return shape
    assert shape is not None  # noqa: S101  there is always a candidate
    raise ConfigError(
        f"this container may use {limit_mib} MiB of memory, and the smallest way to serve this model needs "
        f"{shape.total_mib} MiB ({shape.reason}); give it more memory"
        + (", ask for fewer SAGEMAKER_MODEL_SERVER_WORKERS" if shape.workers > 1 else "")
        + f", or lower SAGEMAKER_MAX_PAYLOAD_IN_MB (now {config.max_payload_mib})"
    )


def _candidates(config: ServeConfig, machine: Machine) -> Iterator[tuple[int, int]]:
    wanted = config.workers or machine.cores
    fewest = config.workers or 1  # A number that was asked for is kept or refused, never quietly lowered.
    for workers in range(wanted, fewest - 1, -1):
        for large_bodies in _LARGE_BODIES:
            yield workers, large_bodies


def _shape(config: ServeConfig, machine: Machine, workers: int, large_bodies: int, network_bytes: int) -> Shape:
    bodies_mib = (workers + large_bodies) * config.max_payload_mib
    heap_mib = 64 + 2 * bodies_mib  # MMS copies a body once on its way to a worker.
    direct_mib = 32 + bodies_mib
    worker_mib = _WORKER_MIB + round(network_bytes / MIB * _NETWORK_FACTOR) + _PHOTO_MIB + config.max_payload_mib
    java_mib = _JVM_MIB + heap_mib + direct_mib
    total_mib = java_mib + workers * worker_mib + _FRONT_MIB + _SERVE_MIB
    threads = config.threads or min(machine.cores, _MAX_THREADS)
    reason = (
        f"Java {java_mib} MiB for {workers + large_bodies} bodies of {config.max_payload_mib} MiB, "
        f"{workers} worker(s) of {worker_mib} MiB, front and control {_FRONT_MIB + _SERVE_MIB} MiB"
    )
    return Shape(
        workers=workers,
        threads=threads,
        large_bodies=large_bodies,
        heap_mib=heap_mib,
        direct_mib=direct_mib,
        total_mib=total_mib,
        reason=reason,
    )
