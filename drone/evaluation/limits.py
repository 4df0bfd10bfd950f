"""What the gate asks of a candidate."""

from dataclasses import dataclass

from drone.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the gate asks for."""

    confidence: float = 0.8
    """How sure the resampled test pictures must be that the candidate's macro F1 is the higher."""

    floor: float = 0.25
    """Smallest recall of any class; 0.25 is what guessing gives."""

    most_recall_lost: float = 0.1
    """By which no class's recall may fall below the champion's."""

    most_ece: float = 0.2
    """Largest expected calibration error."""

    most_ece_more: float = 0.05
    """By which the calibration error may exceed the champion's."""

    most_onnx_difference: float = 1e-3
    """Of a probability, between the trained and the exported model."""

    most_mb: float = 50.0
    """Size of the exported model, in 10^6 bytes."""

    most_ms: float = 500.0
    """Median time of an answer for one picture, on the machine that promotes."""

    most_times_slower: float = 2.0
    """Than the champion, measured in the same minute."""

    def __post_init__(self) -> None:
        for name in ("confidence", "floor", "most_recall_lost", "most_ece", "most_ece_more"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"limits.{name} is {getattr(self, name)}; it must be 0 to 1.")
        for name in ("most_onnx_difference", "most_mb", "most_ms", "most_times_slower"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"limits.{name} is {getattr(self, name)}; it must be above 0.")
