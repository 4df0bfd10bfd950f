"""The training loss: cross-entropy, and by role alone where the class cannot be seen."""

import torch
import torch.nn.functional as functional
from torch import Tensor

from drone.labels import ClassSet


def class_roles(classes: ClassSet, device: torch.device) -> Tensor | None:
    """Returns which classes have each role, (R, K) bool; None if all have the same role."""
    roles = classes.present_roles
    if len(roles) == 1:
        return None
    return torch.tensor([[own == role for own in classes.roles] for role in roles], device=device)


def losses(
    logits_NK: Tensor, labels_N: Tensor, far_N: Tensor, roles_RK: Tensor | None, smoothing: float
) -> Tensor:
    """Returns the cross-entropy of each view, (N,).

    Of an object far away only the role can be seen: a view of it is right if its probabilities of
    the classes that have the label's role, such as drone, add up to 1.

    Args:
        logits_NK: Logits of the classes.
        labels_N: Class indices.
        far_N: Which views show their objects far away, bool, on the processor.
        roles_RK: Which classes have each role; None takes all views by their classes.
        smoothing: Label smoothing.
    """
    # Not by the weight argument, which would weigh the smoothed targets' classes instead.
    losses_N = functional.cross_entropy(
        logits_NK, labels_N, label_smoothing=smoothing, reduction="none"
    )
    if roles_RK is None or not far_N.any():
        return losses_N
    parts = [logits_NK.masked_fill(~mask_K, -torch.inf) for mask_K in roles_RK]
    logits_NR = torch.stack([part_NK.logsumexp(dim=1) for part_NK in parts], dim=1)
    roles_N = roles_RK.int().argmax(dim=0)[labels_N]
    by_role_N = functional.cross_entropy(
        logits_NR, roles_N, label_smoothing=smoothing, reduction="none"
    )
    return torch.where(far_N.to(labels_N.device), by_role_N, losses_N)
