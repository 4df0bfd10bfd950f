"""Which unlabelled images a label would teach a model most: uncertain, disputed and diverse ones.

Axes: N images, K classes, B bytes of a perceptual hash.
"""

import numpy as np
from numpy.typing import NDArray

from drone.data.prepare.near_duplicates import hash_groups
from drone.data.prepare.perceptual_hash import HASH_BITS, UnorientedHashes
from drone.serving.predictor import Outputs

_UNRELATED_BITS = HASH_BITS // 2
"""Distance of the hashes of unrelated images on average; none is more novel than that."""


def beliefs(outputs: Outputs, known_above: float) -> NDArray[np.float64]:
    """Returns probabilities of the classes and of none of them, (N, K + 1).

    The known score is the probability of any class, scaled so that the threshold `known_above`,
    where the answer turns to "none of these", is one half.
    """
    known_N = outputs.known_N.astype(np.float64)
    below_N = known_N / max(known_above, 1e-9) / 2
    above_N = 1 - (1 - known_N) / max(1 - known_above, 1e-9) / 2
    any_class_N = np.clip(np.where(known_N < known_above, below_N, above_N), 0, 1)
    return np.column_stack([outputs.probs_NK * any_class_N[:, None], 1 - any_class_N])


def uncertainty(beliefs_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns one minus the margin between the two most probable answers, (N,), 0 to 1."""
    second_N, first_N = np.sort(beliefs_NK, axis=1)[:, -2:].T
    margin_N: NDArray[np.float64] = first_N - second_N
    return 1 - margin_N


def disagreement(
    first_NK: NDArray[np.float64], second_NK: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns the total variation distance between the beliefs of two models, (N,), 0 to 1."""
    distances_N: NDArray[np.float64] = np.abs(first_NK - second_NK).sum(axis=1) / 2
    return distances_N


def diverse_order(
    scores_N: NDArray[np.float64], hashes_NB: NDArray[np.uint8], max_images: int
) -> list[int]:
    """Returns the positions of images in the order in which to label them.

    Of a group of near duplicates the one with the highest score stands for all. Then each next
    image is the one with the highest product of its score and its distance to those before it
    (farthest-first traversal, Gonzalez 1985, weighted), so that similar images do not come in a
    row.

    Args:
        scores_N: What a label of each image is worth, 0 or more.
        hashes_NB: Perceptual hashes.
        max_images: Maximum number of positions.
    """
    if not len(scores_N):
        return []
    by_score = np.argsort(-scores_N, kind="stable")
    _, first = np.unique(hash_groups(hashes_NB)[by_score], return_index=True)
    left = by_score[np.sort(first)]
    hashes = UnorientedHashes(hashes_NB)
    novelty_N = np.ones(len(scores_N))
    order: list[int] = []
    while len(left) and len(order) < max_images:
        # The small term leaves scores of zero in the order of their novelty.
        best = int(left[np.argmax((scores_N[left] + 1e-6) * novelty_N[left])])
        order.append(best)
        left = left[left != best]
        bits = hashes.distances(np.full(len(left), best), left)
        novelty_N[left] = np.minimum(novelty_N[left], bits / _UNRELATED_BITS)
    return order
