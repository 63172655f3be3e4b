"""A photo's bytes to class probabilities: the artifact's preprocessing and its network, put together."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from container.artifact import WEIGHTS, Manifest, find_artifact, load_manifest
from container.errors import ArtifactError, NotAcceptableError, OutOfMemoryError
from container.memory import return_freed_memory
from container.preprocessing import Float32Array, preprocess, read_photo
from container.probabilities import softmax
from serve.engine import FEATURES, LOGITS, MAPS, Engine, OnnxEngine
from serve.explanation import class_activation_map, draw
from serve.options import Options
from serve.prediction import ClassProbability, Prediction


@dataclass(frozen=True)
class Predictor:
    """Answers for single photos; on CPUs a batch is no faster, and takes its sum of memory at once."""

    manifest: Manifest
    engine: Engine
    folder: Path

    @classmethod
    def load(cls, folder: Path, *, threads: int, device: str = "cpu") -> Predictor:
        """Load the artifact in `folder` and answer for one blank photo, so that the first caller waits no longer.

        On a `device` of torch's other than "cpu" it runs in torch. Raises ArtifactError where the artifact and its
        network do not fit together.
        """
        manifest, folder = load_manifest(folder), find_artifact(folder)
        predictor = cls(manifest, _engine(folder, manifest, threads=threads, device=device), folder)
        predictor.warm_up()
        return_freed_memory()
        return predictor

    def warm_up(self) -> None:
        size = self.manifest.preprocessing.crop_size
        try:
            (logits,) = self.engine.run(np.zeros((1, 3, size, size), np.float32), [LOGITS])
        except (MemoryError, OutOfMemoryError):
            raise  # Not the artifact's fault.
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
        (logits,) = self.engine.run(preprocess(photo, self.manifest.preprocessing)[None], [LOGITS])
        found: Float32Array = logits[0]
        return found

    def predict(self, data: bytes, options: Options) -> Prediction:
        """Raises PhotoError, and NotAcceptableError for an option that this network cannot answer."""
        self.check(options)
        started = time.perf_counter()
        array, (width, height) = read_photo(data, self.manifest.preprocessing)
        decoded = time.perf_counter()
        wanted = [LOGITS, *([FEATURES] if options.embed else []), *([MAPS] if options.explain else [])]
        found = dict(zip(wanted, self.engine.run(array[None], wanted), strict=True))
        inferred = time.perf_counter()
        classes = self._classes(found[LOGITS][0], options)
        threshold = self.manifest.confidence_threshold
        return Prediction(
            classes=classes,
            confident=None if threshold is None else classes[0].probability >= threshold,
            embedding=found[FEATURES][0].tolist() if options.embed else None,
            heat_map=self._heat_map(data, found[MAPS][0], classes[0].index) if options.explain else None,
            decode_s=decoded - started,
            inference_s=inferred - decoded,
            width=width,
            height=height,
        )

    def check(self, options: Options) -> None:
        """Raises NotAcceptableError for an option that this artifact cannot answer."""
        if options.embed and FEATURES not in self.engine.outputs:
            raise NotAcceptableError("embed=true: this model's network gives no features; train it anew to have them")
        if options.explain and MAPS not in self.engine.outputs:
            raise NotAcceptableError("explain=cam: this model's network gives no maps; train it anew to have them")

    @property
    def embedding_length(self) -> int | None:
        """None where the network gives no features."""
        return self.engine.width(FEATURES)

    def _classes(self, logits: Float32Array, options: Options) -> list[ClassProbability]:
        probabilities = softmax(logits, self.manifest.temperature)
        names = self.manifest.class_names
        top_k = min(options.top_k or self.manifest.top_k, len(names))
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        return [
            ClassProbability(label=names[index], index=int(index), probability=float(probabilities[index]))
            for index in best
        ]

    def _heat_map(self, data: bytes, maps: Float32Array, index: int) -> bytes:
        return draw(data, class_activation_map(maps, self.folder / WEIGHTS, index), self.manifest.preprocessing)


def _engine(folder: Path, manifest: Manifest, *, threads: int, device: str) -> Engine:
    if device == "cpu":
        return OnnxEngine(folder / manifest.network, threads=threads)
    from serve.torch_engine import TorchEngine  # torch takes seconds and 800 MB to import

    return TorchEngine(folder, manifest, device=device)
