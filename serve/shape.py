"""How many workers of how many threads, and the one sum that all memory must fit in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from container.errors import ConfigError
from serve.config import ServeConfig
from serve.front import BUFFER_BYTES, HEADROOM_BYTES
from serve.machine import MIB, Machine

# Measured with `make bench`, rounded up: resident memory before the first request.
_JVM_MIB = 96
_FRONT_MIB = 24
_SERVE_MIB = 32
_WORKER_MIB = 40
# Of the network's size: what stays of it in memory (weights packed for the kernels, activations), and what loading
# takes for a moment beside that (the file, the unpacked weights).
_NETWORK_FACTOR = 1.4
_LOADING_FACTOR = 2.2
# The most that container.preprocessing takes to decode a photo.
PHOTO_MIB = 256
# torch with CUDA, in host memory: 815 MB measured on a CPU, the rest an estimate.
_TORCH_MIB = 2048
# More threads than this gain little on one 224 x 224 photo.
_MAX_THREADS = 4
# Only a chunked body can turn out larger than the limit when it is on its way to MMS already. Where MMS itself stops
# one, it resets the connection after its answer, which HAProxy was always seen to pass on; up to this much more is
# taken in, and refused by the worker.
SLACK_MIB = 8
_QUEUE_PER_SLOT = 32
# Bodies on their way into the front, beside those that wait there: fifty slow ones, and as many as come and go.
_UPLOADS = 64
# Bodies too large for the front's buffer may arrive at MMS side by side, so that a slow one keeps no other out. Those
# that are there wait in MMS for a worker, behind one another.
_LARGE_BODIES = (8, 4, 2, 1)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes that belong together.

    `workers` are those of one model, `slots` the requests that MMS may have at once, `large_bodies` those that may
    be on their way to it beside them; `queue_length` may wait in the front, and `most_bodies` be there in all.
    """

    workers: int
    slots: int
    threads: int
    gpus: int
    large_bodies: int
    queue_length: int
    most_bodies: int
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


def choose_multi_model_shape(config: ServeConfig, machine: Machine) -> Shape:
    """The shape of an endpoint of many models, before any is loaded; its total leaves the rest for models."""
    slots = max(4, 2 * machine.cores)
    shape = None
    for large_bodies in _LARGE_BODIES:
        shape = _sum(config, machine, config.workers or 1, slots, large_bodies, machine.cores * PHOTO_MIB)
        if shape.total_mib <= machine.memory_bytes // MIB // 3:
            break
    assert shape is not None  # noqa: S101  there is always a candidate
    if shape.total_mib + model_mib(0) > machine.memory_bytes // MIB:
        raise ConfigError(
            f"this container may use {machine.memory_bytes // MIB} MiB of memory, and an endpoint of many models needs "
            f"{shape.total_mib} MiB before the first ({shape.reason}); give it more memory, or lower "
            f"SAGEMAKER_MAX_PAYLOAD_IN_MB (now {config.max_payload_mib})"
        )
    return shape


def model_mib(network_bytes: int, *, on_gpu: bool = False) -> int:
    """What one worker with a network takes of the host's memory, photos aside, once it is loaded."""
    engine_mib = _TORCH_MIB if on_gpu else 0
    return _WORKER_MIB + engine_mib + round(network_bytes / MIB * _NETWORK_FACTOR)


def loading_mib(network_bytes: int) -> int:
    """What loading a network takes beside that, for a moment."""
    return round(network_bytes / MIB * _LOADING_FACTOR)


def _candidates(config: ServeConfig, machine: Machine) -> Iterator[tuple[int, int]]:
    wanted = config.workers or machine.gpus or machine.cores
    fewest = config.workers or 1  # A number that was asked for is kept or refused, never quietly lowered.
    for workers in range(wanted, fewest - 1, -1):
        for large_bodies in _LARGE_BODIES:
            yield workers, large_bodies


def _shape(config: ServeConfig, machine: Machine, workers: int, large_bodies: int, network_bytes: int) -> Shape:
    at_work_mib = max(PHOTO_MIB + config.max_payload_mib, loading_mib(network_bytes))
    worker_mib = model_mib(network_bytes, on_gpu=machine.gpus > 0) + at_work_mib
    return _sum(config, machine, workers, workers, large_bodies, workers * worker_mib)


def _sum(config: ServeConfig, machine: Machine, workers: int, slots: int, large_bodies: int, workers_mib: int) -> Shape:
    bodies_mib = (slots + large_bodies) * config.max_payload_mib + large_bodies * SLACK_MIB
    heap_mib = 64 + 2 * bodies_mib  # MMS copies a body once on its way to a worker.
    direct_mib = 32 + bodies_mib
    java_mib = _JVM_MIB + heap_mib + direct_mib
    queue_length = slots * _QUEUE_PER_SLOT
    most_bodies = queue_length + slots + large_bodies + _UPLOADS
    front_mib = _FRONT_MIB + round(most_bodies * (BUFFER_BYTES + HEADROOM_BYTES) / MIB)
    reason = (
        f"Java {java_mib} MiB for {slots + large_bodies} bodies of {config.max_payload_mib} MiB, "
        f"workers and their photos {workers_mib} MiB, front with {most_bodies} buffers and control "
        f"{front_mib + _SERVE_MIB} MiB"
    )
    return Shape(
        workers=workers,
        slots=slots,
        threads=config.threads or min(machine.cores, _MAX_THREADS),
        gpus=machine.gpus,
        large_bodies=large_bodies,
        queue_length=queue_length,
        most_bodies=most_bodies,
        heap_mib=heap_mib,
        direct_mib=direct_mib,
        total_mib=java_mib + workers_mib + front_mib + _SERVE_MIB,
        reason=reason,
    )
