"""What is known of the weights that are kept."""

from __future__ import annotations

from dataclasses import dataclass

from container import contract
from train.calibration import Calibration
from train.channels import Photo
from train.export import Networks
from train.outcome import Outcome
from train.predictions import Predictions
from train.quantization import Verdict


@dataclass(frozen=True, kw_only=True)
class Results:
    """Answers of float32 on validation and test, int8's on validation, and what was made of them."""

    outcome: Outcome
    photos: tuple[Photo, ...] = ()  # of validation, in the order of its answers
    validation: Predictions | None = None
    test: Predictions | None = None
    int8: bytes | None = None
    int8_answers: Predictions | None = None
    int8_maps: float | None = None  # the correlation of int8's heat maps with float32's
    verdict: Verdict | None = None
    calibration: Calibration | None = None

    @property
    def shipped(self) -> Predictions | None:
        """Validation's answers by the engine that is served."""
        return self.int8_answers if self.int8_ships else self.validation

    @property
    def int8_ships(self) -> bool:
        return self.verdict is not None and self.verdict.ships

    def networks(self, float32: bytes) -> Networks:
        """int8 is kept where it is served; otherwise its figures are."""
        return Networks(float32=float32, int8=self.int8 if self.int8_ships else None, int8_ships=self.int8_ships)

    def metrics(self) -> dict[str, float]:
        """All figures by name; none where training was stopped before the first validation."""
        metrics: dict[str, float] = {}
        best = self.outcome.best
        if best is None:
            return metrics
        metrics |= {
            contract.VALIDATION_LOSS.name: best.validation_loss,
            contract.VALIDATION_ACCURACY.name: best.validation_accuracy,
            "epoch": float(best.number),
        }
        if self.test is not None:
            metrics |= {contract.TEST_LOSS.name: self.test.loss, contract.TEST_ACCURACY.name: self.test.accuracy}
        if self.verdict is not None:
            metrics |= {
                "int8:accuracy": self.verdict.accuracy,
                "int8:accuracy_float32": self.verdict.accuracy_float32,
                "int8:agreement": self.verdict.agreement,
            }
        if self.int8_maps is not None:
            metrics["int8:map_correlation"] = self.int8_maps
        if self.calibration is not None:
            metrics |= {
                "calibration:ece_before": self.calibration.ece_before,
                "calibration:ece_after": self.calibration.ece_after,
            }
        return metrics
