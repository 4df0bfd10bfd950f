"""Probabilities of roles: bird, drone or other. Axes: N images, K classes, R roles."""

import numpy as np
from numpy.typing import NDArray

from drone.labels import ClassSet


def role_probabilities(probs_NK: NDArray[np.float32], classes: ClassSet) -> NDArray[np.float64]:
    """Returns the sums of the classes' probabilities by role, (N, R), as `present_roles` has them.

    Like an answer's probabilities they are in float64.
    """
    sums = [
        probs_NK[:, classes.indices(role)].astype(np.float64).sum(axis=1)
        for role in classes.present_roles
    ]
    return np.stack(sums, axis=1)


def decide(probs_NK: NDArray[np.float32], classes: ClassSet) -> NDArray[np.int64]:
    """Returns the index of the class that each image is said to show, (N,).

    That is the most probable class of the most probable role: where three classes of drones share
    0.6, an image is no bird with 0.4. With classes of one role it is the most probable class.
    """
    # In float64, so that the page, whose numbers are, decides alike.
    roles_N = role_probabilities(probs_NK, classes).argmax(axis=1)
    candidates_NK = np.where(np.array(classes.role_indices) == roles_N[:, None], probs_NK, -1)
    indices_N: NDArray[np.int64] = candidates_NK.argmax(axis=1)
    return indices_N


def confidences(probs_NK: NDArray[np.float32], indices_N: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns the probability of the class that each image is said to show, (N,)."""
    confidences_N: NDArray[np.float32] = probs_NK[np.arange(len(indices_N)), indices_N]
    return confidences_N


def drone_probabilities(
    probs_NK: NDArray[np.float32], classes: ClassSet
) -> NDArray[np.float64] | None:
    """Returns the probability of a drone of any kind, (N,); None if classes do not tell drones."""
    if not classes.tells_drones:
        return None
    return role_probabilities(probs_NK, classes)[:, classes.present_roles.index("drone")]
