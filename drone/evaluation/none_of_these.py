"""How well the known score tells images of the classes from negatives, by kind of negative."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from drone.data.prepare.class_names import ALL_KINDS
from drone.evaluation.known_fit import ACCEPTED
from drone.evaluation.metrics import Proportion, proportion, wilson


@dataclass(frozen=True)
class KindScores:
    """How well negatives of one kind are told from images of the classes."""

    kind: str
    auroc: Proportion
    """Area under the ROC curve: how often an image of a class has a higher known score than a
    negative. The interval is that of a proportion of as many images as there are negatives (or
    images of classes, if these are fewer), which is wider than needed."""

    false_positives: Proportion
    """Share of the negatives that pass for a class where 95 % of the images of classes do."""

    accepted: Proportion
    """Share of the negatives that pass for a class at the model's threshold."""


@dataclass(frozen=True)
class KnownScores:
    """What the known score does on an evaluation's images."""

    accepted: Proportion
    """Share of the images of classes that the model takes for one."""

    kinds: tuple[KindScores, ...] = ()
    """All negatives together, then each kind; empty without negatives."""

    def as_dict(self) -> dict[str, Any]:
        """Returns all figures as JSON values, as metrics.json has them."""
        return {
            "accepted": asdict(self.accepted),
            "kinds": {scores.kind: asdict(scores) for scores in self.kinds},
        }

    @property
    def sentence(self) -> str:
        """The result for a person."""
        taken = f"{self.accepted.value:.1%} of the images of classes are taken for one"
        if not self.kinds:
            return f"{taken}; the data set has no negatives to compare them with."
        every = self.kinds[0]
        return (
            f"{taken}, and {every.accepted.value:.1%} of {every.accepted.support} negatives "
            f"(AUROC {every.auroc.value:.3f}, 95 % interval {every.auroc.low:.3f} to "
            f"{every.auroc.high:.3f})."
        )


def score_known(
    known_N: NDArray[np.float32],
    known_above: float,
    negatives_M: NDArray[np.float32],
    kinds_M: Sequence[str],
) -> KnownScores:
    """Scores the known scores of images of classes and of negatives.

    Args:
        known_N: Known scores of at least one image of a class.
        known_above: The model's threshold.
        negatives_M: Known scores of negatives; may be empty.
        kinds_M: Kind of each negative.
    """
    accepted = proportion(known_N >= known_above)
    if not len(negatives_M):
        return KnownScores(accepted)
    groups = {ALL_KINDS: np.ones(len(negatives_M), bool)}
    groups |= {kind: np.array(kinds_M) == kind for kind in sorted(set(kinds_M))}
    scores = [
        _score_kind(kind, known_N, known_above, negatives_M[is_kind_M])
        for kind, is_kind_M in groups.items()
    ]
    return KnownScores(accepted, tuple(scores))


def _score_kind(
    kind: str, known_N: NDArray[np.float32], known_above: float, negatives_M: NDArray[np.float32]
) -> KindScores:
    scores = np.concatenate([known_N, negatives_M])
    auroc = float(roc_auc_score(np.arange(len(scores)) < len(known_N), scores))
    support = min(len(known_N), len(negatives_M))
    return KindScores(
        kind,
        Proportion(auroc, *wilson(auroc, support), support),
        proportion(negatives_M >= np.quantile(known_N, 1 - ACCEPTED)),
        proportion(negatives_M >= known_above),
    )
