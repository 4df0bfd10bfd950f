"""The training loss."""

import pytest
import torch
import torch.nn.functional as functional

from drone.labels import CLASSES
from drone.training.loss import drone_classes, losses

CPU = torch.device("cpu")
LOGITS = torch.randn((6, 4), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 0, 2])
NEAR, FAR = torch.zeros(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool)


def test_a_near_view_counts_by_its_class() -> None:
    expected = functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.1, reduction="none")
    is_drone = drone_classes(CLASSES, CPU)
    assert torch.equal(losses(LOGITS, LABELS, NEAR, is_drone, 0.1), expected)
    mixed = losses(LOGITS, LABELS, FAR ^ (LABELS == 0), is_drone, 0.1)
    assert torch.equal(mixed[LABELS == 0], expected[LABELS == 0])
    assert not torch.isclose(mixed[LABELS != 0], expected[LABELS != 0]).any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_far_view_counts_by_its_kind(smoothing: float) -> None:
    far = losses(LOGITS, LABELS, FAR, drone_classes(CLASSES, CPU), smoothing)
    bird_N = LOGITS.softmax(dim=1)[:, 0]
    probs_N2 = torch.stack([bird_N, 1 - bird_N], dim=1)
    target_N2 = functional.one_hot((LABELS != 0).long(), 2) * (1 - smoothing) + smoothing / 2
    torch.testing.assert_close(far, -(target_N2 * probs_N2.log()).sum(dim=1))


def test_a_far_view_does_not_teach_which_drone_it_is() -> None:
    logits = LOGITS.clone().requires_grad_()
    is_drone = drone_classes(CLASSES, CPU)
    losses(logits, LABELS, FAR, is_drone, 0.0).sum().backward()
    # Among drones the gradient leaves the odds as they are: it is in proportion to probability.
    shares = logits.grad[:, 1:] / LOGITS.softmax(dim=1)[:, 1:]
    torch.testing.assert_close(shares, shares[:, :1].expand_as(shares))


def test_without_birds_or_without_drones_all_views_count_by_their_classes() -> None:
    for classes in (("planes", "kites", "moons", "kytes"), (CLASSES[0],)):
        assert drone_classes(classes, CPU) is None
    expected = functional.cross_entropy(LOGITS, LABELS, reduction="none")
    assert torch.equal(losses(LOGITS, LABELS, FAR, None, 0.0), expected)
