"""ONNX Runtime, as training uses it: on CPUs, its waiting threads not spinning beside the loader's processes."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from train.workers import threads_within_quota


def session(network: bytes | Path, *, threads: int = 0) -> onnxruntime.InferenceSession:
    """Load a network; `threads` is 0 for as many as there are cores, or as the container's quota allows."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or threads_within_quota()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
