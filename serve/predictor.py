"""A photo's bytes to class probabilities: the artifact's preprocessing and its network, put together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from container.artifact import Manifest, find_artifact, load_manifest
from container.errors import ArtifactError
from container.preprocessing import Float32Array, preprocess
from serve.engine import OnnxEngine


class Engine(Protocol):
    """What runs a network."""

    def logits(self, photos: Float32Array) -> Float32Array:
        """(batch, 3, height, width) float32 -> (batch, classes) float32."""


@dataclass(frozen=True, kw_only=True)
class ClassProbability:
    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Predictor:
    """Answers for single photos; on CPUs a batch is no faster, and takes its sum of memory at once."""

    manifest: Manifest
    engine: Engine

    @classmethod
    def load(cls, folder: Path, *, threads: int) -> Predictor:
        """Load the artifact in `folder` and answer for one blank photo, so that the first caller waits no longer.

        Raises ArtifactError where the artifact and its network do not fit together.
        """
        manifest = load_manifest(folder)
        predictor = cls(manifest, OnnxEngine(find_artifact(folder) / manifest.network, threads=threads))
        predictor.warm_up()
        return predictor

    def warm_up(self) -> None:
        size = self.manifest.preprocessing.crop_size
        try:
            logits = self.engine.logits(np.zeros((1, 3, size, size), np.float32))
        except Exception as error:
            raise ArtifactError(
                f"{self.manifest.network} does not run on photos of {size} x {size} pixels: {error}"
            ) from error
        expected = (1, len(self.manifest.class_names))
        if logits.shape != expected:
            raise ArtifactError(
                f"{self.manifest.network} gives logits of shape {logits.shape}, and the manifest names "
                f"{expected[1]} classes: they are not of one artifact"
            )

    def logits(self, photo: bytes) -> Float32Array:
        """A photo's bytes -> (classes,) float32; raises PhotoError."""
        array: Float32Array = self.engine.logits(preprocess(photo, self.manifest.preprocessing)[None])[0]
        return array

    def predict(self, photo: bytes, top_k: int) -> list[ClassProbability]:
        """The `top_k` most probable classes, best first; raises PhotoError."""
        probabilities = softmax(self.logits(photo))
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        names = self.manifest.class_names
        return [
            ClassProbability(label=names[index], index=int(index), probability=float(probabilities[index]))
            for index in best
        ]


def softmax(logits: Float32Array) -> Float32Array:
    """(classes,) -> (classes,), in double precision, of sum 1."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    probabilities: Float32Array = (powers / powers.sum()).astype(np.float32)
    return probabilities
