"""Limits that the promotion gate holds a candidate to; importing them loads no library."""

from dataclasses import dataclass

from drone.errors import ConfigError

MAX_PROBABILITY_DIFFERENCE = 1e-3
"""Maximum difference of a probability between the trained and the exported model, both in fp32."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the promotion gate."""

    min_confidence: float = 0.8
    """Minimum share of bootstrap resamples of the test images in which the candidate must have the
    higher macro F1, 0 to 1."""

    min_recall: float | None = None
    """Minimum recall of every class, 0 to 1 (default: that of guessing, 1 divided by the number of
    classes)."""

    max_recall_drop: float = 0.1
    """Maximum drop of any class's recall below the champion's, 0 to 1."""

    max_ece: float = 0.2
    """Maximum expected calibration error, 0 to 1."""

    max_ece_increase: float = 0.05
    """Maximum increase of the expected calibration error over the champion's, 0 to 1."""

    min_accepted: float = 0.85
    """Minimum share of the test images that the model takes for one of the classes, and not for
    "none of these", 0 to 1."""

    max_auroc_drop: float = 0.03
    """Maximum drop below the champion's AUROC against the negatives of the test split, 0 to 1."""

    max_false_alarms: float | None = None
    """Maximum false alarms per 1,000 birds of the test split, at the threshold at which the share
    --limits.alarm-recall of its drones raises an alarm (default: not required). A test split with
    fewer birds than 3,000 divided by this limit cannot show this, and does not pass."""

    alarm_recall: float = 0.95
    """Share of the drones of the test split that must raise an alarm where
    --limits.max-false-alarms counts the false ones, above 0 and at most 1."""

    max_onnx_difference: float = MAX_PROBABILITY_DIFFERENCE
    """Maximum probability difference between the trained and the exported model."""

    max_size_mb: float = 50.0
    """Maximum size of the exported model, in units of 10^6 bytes."""

    max_latency_ms: float = 500.0
    """Maximum median inference time for one image, in milliseconds, on this machine."""

    max_slowdown: float = 2.0
    """Maximum inference time as a multiple of the champion's, both measured by the promotion."""

    def __post_init__(self) -> None:
        for name in (
            "min_confidence",
            "min_recall",
            "max_recall_drop",
            "max_ece",
            "max_ece_increase",
            "min_accepted",
            "max_auroc_drop",
        ):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"limits.{name} is {value}; it must be 0 to 1.")
        if not 0 < self.alarm_recall <= 1:
            raise ConfigError(
                f"limits.alarm_recall is {self.alarm_recall}; it must be above 0 and at most 1."
            )
        for name in (
            "max_false_alarms",
            "max_onnx_difference",
            "max_size_mb",
            "max_latency_ms",
            "max_slowdown",
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"limits.{name} is {getattr(self, name)}; it must be above 0.")
