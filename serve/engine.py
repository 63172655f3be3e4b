"""ONNX Runtime: photos to logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from container.errors import ArtifactError
from container.preprocessing import Float32Array

INPUT = "photos"
LOGITS = "logits"


class OnnxEngine:
    """One network in memory, on CPUs."""

    def __init__(self, network: Path, *, threads: int) -> None:
        """Load `network`; raises ArtifactError where it is no network of ours."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Waiting threads that spin steal the cores from the other workers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(network), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own.
            raise ArtifactError(f"{network} cannot be loaded by ONNX Runtime: {error}") from error
        self._check_names(network)

    def _check_names(self, network: Path) -> None:
        inputs = [value.name for value in self._session.get_inputs()]
        outputs = [value.name for value in self._session.get_outputs()]
        if inputs != [INPUT] or LOGITS not in outputs:
            raise ArtifactError(
                f"{network} takes {', '.join(inputs)} and gives {', '.join(outputs)}; "
                f"expected '{INPUT}' in and '{LOGITS}' out"
            )

    def logits(self, photos: Float32Array) -> Float32Array:
        """(batch, 3, height, width) float32 -> (batch, classes) float32."""
        (logits,) = self._session.run([LOGITS], {INPUT: photos})
        return np.asarray(logits, np.float32)
