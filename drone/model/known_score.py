"""The known score: how much an image is like those that the model was trained on.

It is the similarity (cosine) of the image's features to the mean features of the nearest class,
plus, where the data set has negatives, a linear score that tells them from the classes. Of the
scores that were compared (docs/none-of-these.md) it ranks best, and it costs next to nothing.
"""

import torch
from torch import Tensor, nn

THRESHOLD = 0.5
"""The score that 95 % of validation images reach."""


class KnownScore(nn.Module):
    """Maps pooled features to a score from 0 to 1; an image below `THRESHOLD` is none of these."""

    def __init__(self, means_KF: Tensor, negatives_F: Tensor, scale: float, offset: float) -> None:
        """Keeps the statistics.

        Args:
            means_KF: Mean of the unit features of each class, scaled to length 1.
            negatives_F: Weights of the score against negatives; zeros without them.
            scale: Factor that brings the sum of both scores to logits.
            offset: The sum of both scores at which the score is 0.5.
        """
        super().__init__()
        self.means_KF: Tensor
        self.negatives_F: Tensor
        self.register_buffer("means_KF", means_KF)
        self.register_buffer("negatives_F", negatives_F)
        self.scale, self.offset = scale, offset

    def forward(self, features_NF: Tensor) -> Tensor:
        """Returns the scores, (N,) float32."""
        return torch.sigmoid((self.sums(features_NF) - self.offset) * self.scale)

    def sums(self, features_NF: Tensor) -> Tensor:
        """Returns the sums of both scores, (N,): similarity to a class, and to no negative."""
        unit_NF = nn.functional.normalize(features_NF.float(), dim=1)
        nearest_N = (unit_NF @ self.means_KF.T).amax(dim=1)
        return nearest_N + unit_NF @ self.negatives_F


def accepting_all(num_features: int) -> KnownScore:
    """Returns a score that is near 1 for every image: of a model that nothing is known of."""
    zeros_F = torch.zeros(num_features)
    return KnownScore(zeros_F[None], zeros_F, scale=1.0, offset=-10.0)
