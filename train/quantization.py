"""int8 that proves itself: made from the float32 graph, calibrated on training photos, compared on validation.

Static quantisation with QDQ pairs, per channel, weights and activations int8. The head stays float32: it is a
thousandth of the work, and keeps class-activation maps exact for the network that gave them.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from container.preprocessing import Float32Array, Preprocessing, preprocess
from train.channels import Photo
from train.distributed import ALONE, World
from train.engine import session
from train.predictions import Predictions, until_stopped
from train.sets import spread
from train.stop import STOP, Stopped

CALIBRATION_PHOTOS: Final = 64
# int8 is not judged on fewer: a single photo would be more than half a point.
LEAST_PHOTOS: Final = 200
LEAST_AGREEMENT: Final = 0.98


@dataclass(frozen=True)
class Verdict:
    """What was found of int8 beside float32, and whether it ships."""

    ships: bool
    reason: str
    accuracy: float
    accuracy_float32: float
    agreement: float


class _Photos(CalibrationDataReader):  # type: ignore[misc]
    """Preprocessed photos, one at a time, as ONNX Runtime wants to be fed."""

    def __init__(self, photos: Sequence[Photo], spec: Preprocessing) -> None:
        self._arrays: Iterator[Float32Array] = (preprocess(photo.path.read_bytes(), spec)[None] for photo in photos)

    def get_next(self) -> dict[str, Float32Array] | None:
        STOP.check()
        array = next(self._arrays, None)
        return None if array is None else {"photos": array}


def quantize(network: bytes, photos: Sequence[Photo], spec: Preprocessing) -> bytes:
    """Return the int8 network, calibrated on some of `photos`, which are of training. Raises Stopped."""
    with tempfile.TemporaryDirectory(prefix="kennel-int8-") as folder:
        source, target = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(network)
        # It advises on standard logging to run a pass that the graph writer has already made needless.
        logging.getLogger().addFilter(_no_preprocessing_advice)
        try:
            quantize_static(
                source,
                target,
                _Photos(spread(photos, CALIBRATION_PHOTOS), spec),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Add", "MaxPool", "Relu", "GlobalAveragePool"],
                per_channel=True,
                # Seven bits of weights: processors without VNNI add pairs of products in 16 bits, which eight overflow.
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
        finally:
            logging.getLogger().removeFilter(_no_preprocessing_advice)
        return target.read_bytes()


def _no_preprocessing_advice(record: logging.LogRecord) -> bool:
    return "pre-processing" not in record.getMessage()


def answers(
    network: bytes | Path, photos: Sequence[Photo], spec: Preprocessing, *, threads: int = 0, world: World = ALONE
) -> Predictions:
    """The network's logits, a photo at a time: as they are served, since int8's may depend on the batch.

    Raises Stopped, in all processes, where the job is to end: thousands of photos take longer than it may then go on.
    """
    engine: Any = session(network, threads=threads)

    def logits(photo: Photo) -> Float32Array:
        (found,) = engine.run(["logits"], {"photos": preprocess(photo.path.read_bytes(), spec)[None]})
        return found  # type: ignore[no-any-return]

    classes = engine.get_outputs()[0].shape[1]
    seen = until_stopped(photos, len(photos), world=world)
    found = [np.empty((0, classes), np.float32), *(logits(photo) for photo in seen)]
    if world.any(STOP.requested())[0]:
        raise Stopped("stopped before all photos were answered for")
    return Predictions(np.concatenate(found), np.array([photo.label for photo in photos], np.int64))


def judge(int8: Predictions, float32: Predictions, *, max_drop_points: float, always: bool) -> Verdict:
    """Ship int8 if it is about as accurate and answers as float32 does, on enough photos to tell."""
    count = len(int8.labels)
    agreement = float((int8.logits.argmax(1) == float32.logits.argmax(1)).mean())
    drop = float32.accuracy - int8.accuracy
    # On few photos one changed answer is more than half a point: one is always forgiven.
    allowed = max(max_drop_points / 100, 1 / count)
    if always:
        ships, reason = True, "quantize=always"
    elif count < LEAST_PHOTOS:
        ships, reason = False, f"{count} validation photos are too few to judge int8 by; {LEAST_PHOTOS} are needed"
    elif drop > allowed + 1e-9:
        ships, reason = False, f"int8 loses {drop:.2%} of validation accuracy; {allowed:.2%} is allowed"
    elif agreement < LEAST_AGREEMENT:
        ships, reason = False, f"int8 agrees with float32 on {agreement:.1%}; {LEAST_AGREEMENT:.0%} is needed"
    else:
        ships, reason = True, f"int8 loses {drop:.2%} of validation accuracy and agrees on {agreement:.1%}"
    return Verdict(ships, reason, int8.accuracy, float32.accuracy, agreement)
