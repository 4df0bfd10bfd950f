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


def drone_probabilities(
    probs_NK: NDArray[np.float32], classes: ClassSet
) -> NDArray[np.float64] | None:
    """Returns the probability of a drone of any kind, (N,); None if classes do not tell drones."""
    if not classes.tells_drones:
        return None
    return role_probabilities(probs_NK, classes)[:, classes.present_roles.index("drone")]
