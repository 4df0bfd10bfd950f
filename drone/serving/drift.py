"""Drift: whether answers still spread as they did on images that the model was not trained on.

An exported file has a reference: how its answers to such images spread over labels, and over bins
of confidence and of the known score, which falls with the distance to the features of training. A
server compares its latest answers with it.
"""

import bisect
import collections
import json
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from drone.labels import NONE

if TYPE_CHECKING:  # It imports this module.
    from drone.serving.predictor import Prediction

EDGES = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Edges of the bins of confidence and known score: narrow at the top, where most answers are."""

MIN_ANSWERS = 200
"""Answers that a comparison needs: below, chance alone moves the index by more than 0.1."""

_WINDOW = 1000
"""Latest answers that are compared."""

_CHANCE_Z = 2.326
"""Quantile of the normal distribution that 1 % exceed."""

Bins = tuple[int, int, int]
"""Bins of one answer: its label, its confidence and its known score."""


def stability_index(expected: Sequence[int], found: Sequence[int]) -> float:
    """Returns the population stability index of two histograms: sum((p - q) ln(p / q)).

    Below 0.1 they count as alike, from 0.25 on as different (Siddiqi 2006, Credit Risk Scorecards).
    Half an image is added to each bin, so that an empty one does not make it infinite.
    """
    shares = zip(_smoothed(expected), _smoothed(found), strict=True)
    return sum((p - q) * math.log(p / q) for p, q in shares)


def _smoothed(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + 0.5 * len(counts)
    return [(count + 0.5) / total for count in counts]


def index_by_chance(num_bins: int, num_expected: int, num_found: int) -> float:
    """Returns the stability index that 1 % of comparisons exceed although nothing has changed.

    The index is distributed as (1/M + 1/N) chi-square of K - 1 degrees of freedom, for M and N
    independent images in K bins (Yurdakul and Naranjo 2020); the quantile is the approximation of
    Wilson and Hilferty (1931).
    """
    freedom = num_bins - 1
    if freedom == 0:
        return 0.0
    spread = 2 / (9 * freedom)
    quantile = freedom * (1 - spread + _CHANCE_Z * math.sqrt(spread)) ** 3
    return quantile * (1 / num_expected + 1 / num_found)


@dataclass(frozen=True)
class Reference:
    """How a model's answers spread over images that it was not trained on."""

    classes: tuple[int, ...]
    """Number of answers with each label: the classes, then NONE."""

    confidence: tuple[int, ...]
    """Number of answers in each bin of the confidence."""

    known: tuple[int, ...]
    """Number of answers in each bin of the known score."""

    edges: tuple[float, ...] = EDGES
    """Edges between the bins of both, ascending."""

    def __post_init__(self) -> None:
        num_bins = len(self.edges) + 1
        if not all(isinstance(edge, int | float) for edge in self.edges):
            raise ValueError(f"the reference's edges are {list(self.edges)}; they must be numbers")
        if list(self.edges) != sorted(self.edges):
            raise ValueError(f"the reference's edges are {list(self.edges)}; they must ascend")
        for counts in (self.classes, self.confidence, self.known):
            if not all(isinstance(count, int) and count >= 0 for count in counts):
                raise ValueError(f"the reference has {list(counts)}, which are no counts")
            if sum(counts) != self.num_answers or not sum(counts):
                raise ValueError("the reference's histograms are not of the same images")
        if len(self.confidence) != num_bins or len(self.known) != num_bins:
            raise ValueError(f"the reference's histograms do not have {num_bins} bins")

    @property
    def num_answers(self) -> int:
        """Number of images that were answered."""
        return sum(self.classes)

    def bins(self, prediction: "Prediction") -> Bins:
        """Returns the bins of an answer."""
        return _bins(prediction, len(self.classes) - 1, self.edges)

    @classmethod
    def of(cls, predictions: Iterable["Prediction"], num_classes: int) -> "Reference":
        """Returns the reference of at least one answer."""
        num_bins = len(EDGES) + 1
        counts = [[0] * (num_classes + 1), [0] * num_bins, [0] * num_bins]
        for prediction in predictions:
            _add(counts, _bins(prediction, num_classes, EDGES), 1)
        return cls(*map(tuple, counts))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], num_classes: int) -> "Reference | None":
        """Parses the metadata of an ONNX file; None if it has no reference.

        Raises:
            TypeError: The entry is of another type.
            ValueError: It is not what `as_metadata` returns.
        """
        if "reference" not in metadata:
            return None
        fields = json.loads(metadata["reference"])
        reference = cls(**{name: tuple(values) for name, values in fields.items()})
        if len(reference.classes) != num_classes + 1:
            raise ValueError(f"the reference is not of {num_classes} classes")
        return reference

    def as_metadata(self) -> dict[str, str]:
        """Returns the entry for the metadata of the model file."""
        return {"reference": json.dumps(asdict(self))}


@dataclass(frozen=True)
class Drift:
    """How one aspect of the latest answers differs from the reference."""

    index: float
    """Population stability index."""

    by_chance: float
    """The index that 1 % of comparisons of so many answers exceed by chance."""


class Window:
    """The latest answers of a server, in bounded memory; threads may share it."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._expected = {
            name: getattr(reference, name) for name in ("classes", "confidence", "known")
        }
        self._lock = threading.Lock()
        self._latest: collections.deque[Bins] = collections.deque()
        self._counts = [[0] * len(counts) for counts in self._expected.values()]

    def add(self, prediction: "Prediction") -> None:
        """Adds an answer, in place of the oldest one if the window is full."""
        bins = self._reference.bins(prediction)
        with self._lock:
            self._latest.append(bins)
            _add(self._counts, bins, 1)
            if len(self._latest) > _WINDOW:
                _add(self._counts, self._latest.popleft(), -1)

    @property
    def num_answers(self) -> int:
        """Number of answers in the window."""
        return len(self._latest)

    def drift(self) -> dict[str, Drift]:
        """Returns the drift of classes, confidence and known score; empty of too few answers."""
        with self._lock:
            num_answers, counts = len(self._latest), [list(found) for found in self._counts]
        if num_answers < MIN_ANSWERS:
            return {}
        num_expected = self._reference.num_answers
        return {
            name: Drift(
                stability_index(expected, found),
                index_by_chance(len(expected), num_expected, num_answers),
            )
            for (name, expected), found in zip(self._expected.items(), counts, strict=True)
        }


def _bins(prediction: "Prediction", num_classes: int, edges: Sequence[float]) -> Bins:
    return (
        num_classes if prediction.label == NONE else prediction.index,
        bisect.bisect_right(edges, prediction.confidence),
        bisect.bisect_right(edges, prediction.known),
    )


def _add(counts: Sequence[list[int]], bins: Bins, number: int) -> None:
    for histogram, position in zip(counts, bins, strict=True):
        histogram[position] += number
