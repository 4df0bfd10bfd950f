"""What would improve a model, in sentences."""

from drone.curation.learning_curve import ClassGain, CleaningGain, Estimate, LearningCurve

_LITTLE = 0.01
"""Width of an interval that says that there is little to gain, however few images there are."""


def sentences(curve: LearningCurve) -> list[str]:
    """Returns the advice of learning curves as English sentences, the most valuable first."""
    advice = [(_worth(item.gain), _class_sentence(item)) for item in curve.by_class]
    if curve.labels.num_suspects:
        advice.append((_worth(curve.labels.dropped), _labels_sentence(curve.labels)))
    return [text for _, text in sorted(advice, key=lambda pair: pair[0], reverse=True)]


def _worth(gain: Estimate | None) -> tuple[bool, float]:
    """Orders gains: those that are certain come first, then by size."""
    return (gain is not None and gain.low > 0, gain.value if gain else -1.0)


def _class_sentence(item: ClassGain) -> str:
    # Class names are plural, as the folders are.
    name, extra = item.class_name, item.num_extra
    if item.gain is None:
        return (
            f"{name}: {item.num_groups} different images are too few to tell what more would bring."
        )
    if item.gain.low > 0:
        return f"{extra} more {name} are worth {_points(item.gain)}."
    return f"{extra} more {name}: {_not_worth(item.gain)}"


def _labels_sentence(labels: CleaningGain) -> str:
    gain = labels.dropped
    what = f"the {labels.num_suspects} doubtful labels"
    if gain.low > 0:
        return f"Training without {what} is worth {_points(gain)}."
    return f"Training without {what}: {_not_worth(gain)}"


def _not_worth(gain: Estimate) -> str:
    """Returns the rest of a sentence on a gain that may be none."""
    if gain.high < 0:
        loss, low, high = (_in_points(-part) for part in (gain.value, gain.high, gain.low))
        return f"worse by about {loss:.1f} points of accuracy ({low:.1f} to {high:.1f})."
    if gain.high - gain.low < _LITTLE:
        return f"hardly any difference, {_between(gain)} points of accuracy."
    return f"too few images to tell, {_between(gain)} points of accuracy."


def _points(gain: Estimate) -> str:
    value, low, high = (_in_points(part) for part in (gain.value, gain.low, gain.high))
    return f"about {value:+.1f} points of accuracy ({low:.1f} to {high:.1f})"


def _between(gain: Estimate) -> str:
    return f"between {_in_points(gain.low):+.1f} and {_in_points(gain.high):+.1f}"


def _in_points(share: float) -> float:
    """Returns a share in points, rounded to one digit, without a negative zero."""
    return round(100 * share, 1) + 0.0
