"""Power laws of learning curves: error = a + b n^-c at n training images.

Deep networks and classical classifiers follow them (Hestness et al. 2017, "Deep Learning Scaling Is
Predictable, Empirically"; Viering and Loog 2022, "The Shape of Learning Curves"). Axes: S sizes,
B resampled curves, E values of the exponent c.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_EXPONENTS_E = np.linspace(0.25, 1.0, 7)
"""Candidates for c. Five noisy points cannot tell steeper curves from a plateau."""

MAX_GROWTH = 2.0
"""Times as many images as the curve was measured with; beyond it no fit is to be trusted."""


@dataclass(frozen=True)
class PowerLaws:
    """Fitted power laws, one for each of B curves; n counts in units of the largest size."""

    a_B: NDArray[np.float64]
    b_B: NDArray[np.float64]
    """Negative where more images increase the error."""

    c_B: NDArray[np.float64]

    def errors(self, growth: float) -> NDArray[np.float64]:
        """Returns the error rates, (B,), at a multiple of the largest size.

        Raises:
            ValueError: The multiple is above `MAX_GROWTH`.
        """
        if growth > MAX_GROWTH:
            raise ValueError(
                f"growth is {growth}: a learning curve is extrapolated to {MAX_GROWTH} times its "
                "largest size at most"
            )
        return self.a_B + self.b_B * growth**-self.c_B


def fit(shares_S: NDArray[np.float64], errors_SB: NDArray[np.float64]) -> PowerLaws:
    """Fits a power law to each of B curves by weighted least squares, with 0 <= a <= 1.

    For a given c the problem is linear, so c is searched on a grid and a and b follow exactly. A
    size weighs as much as its share: the scatter between draws falls with the number of images.

    Args:
        shares_S: Sizes as shares of the largest one.
        errors_SB: Error rates at these sizes.
    """
    weights_S = shares_S / shares_S.sum()
    best_B = np.full(errors_SB.shape[1], np.inf)
    a_B, b_B, c_B = (np.zeros_like(best_B) for _ in range(3))
    for exponent in _EXPONENTS_E:
        powers_S = shares_S**-exponent
        centred_S = powers_S - weights_S @ powers_S
        slope_B = (weights_S * centred_S) @ errors_SB / (weights_S @ centred_S**2)
        level_B = np.clip(weights_S @ errors_SB - slope_B * (weights_S @ powers_S), 0, 1)
        # Again with the level at its bound, where that applies.
        slope_B = (weights_S * powers_S) @ (errors_SB - level_B) / (weights_S @ powers_S**2)
        residuals_SB = errors_SB - level_B - np.outer(powers_S, slope_B)
        loss_B = weights_S @ residuals_SB**2
        better_B = loss_B < best_B
        best_B = np.where(better_B, loss_B, best_B)
        a_B, b_B = np.where(better_B, level_B, a_B), np.where(better_B, slope_B, b_B)
        c_B = np.where(better_B, exponent, c_B)
    return PowerLaws(a_B, b_B, c_B)
