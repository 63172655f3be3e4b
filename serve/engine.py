"""ONNX Runtime: photos to logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime

from container.errors import ArtifactError
from container.preprocessing import Float32Array
from serve.cores import let_others_finish, running_threads

INPUT = "photos"
# (batch, classes); (batch, channels): pooled; (batch, channels, h, w): what is pooled.
LOGITS = "logits"
FEATURES = "features"
MAPS = "maps"


class Engine(Protocol):
    """What runs a network; `str` of it says in words what that is."""

    @property
    def outputs(self) -> frozenset[str]:
        """Names of what the network can give."""

    def width(self, output: str) -> int | None:
        """The second dimension of an output; None where the network does not give it."""

    def run(self, photos: Float32Array, outputs: Sequence[str]) -> list[Float32Array]:
        """(batch, 3, height, width) float32 -> the named outputs, float32."""


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
        before = running_threads()
        try:
            self._session = onnxruntime.InferenceSession(
                str(network), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except MemoryError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own.
            raise ArtifactError(f"{network} cannot be loaded by ONNX Runtime: {error}") from error
        let_others_finish(running_threads() - before)
        self._check_names(network)
        self._words = f"ONNX Runtime {onnxruntime.__version__} in {threads} thread(s)"

    def __str__(self) -> str:
        return self._words

    def _check_names(self, network: Path) -> None:
        inputs = [value.name for value in self._session.get_inputs()]
        outputs = [value.name for value in self._session.get_outputs()]
        if inputs != [INPUT] or LOGITS not in outputs:
            raise ArtifactError(
                f"{network} takes {', '.join(inputs)} and gives {', '.join(outputs)}; "
                f"expected '{INPUT}' in and '{LOGITS}' out"
            )

    @property
    def outputs(self) -> frozenset[str]:
        return frozenset(value.name for value in self._session.get_outputs())

    def width(self, output: str) -> int | None:
        widths = [value.shape[1] for value in self._session.get_outputs() if value.name == output]
        return int(widths[0]) if widths else None

    def run(self, photos: Float32Array, outputs: Sequence[str]) -> list[Float32Array]:
        return [np.asarray(value, np.float32) for value in self._session.run(list(outputs), {INPUT: photos})]
