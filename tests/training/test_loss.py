"""The training loss."""

import pytest
import torch
import torch.nn.functional as functional

from drone.labels import CLASSES, ClassSet
from drone.training.loss import class_roles, losses

CPU = torch.device("cpu")
LOGITS = torch.randn((6, 4), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 0, 2])
NEAR, FAR = torch.zeros(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool)


def test_a_near_view_counts_by_its_class() -> None:
    expected = functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.1, reduction="none")
    roles = class_roles(CLASSES, CPU)
    assert torch.equal(losses(LOGITS, LABELS, NEAR, roles, 0.1), expected)
    mixed = losses(LOGITS, LABELS, FAR ^ (LABELS == 0), roles, 0.1)
    assert torch.equal(mixed[LABELS == 0], expected[LABELS == 0])
    assert not torch.isclose(mixed[LABELS != 0], expected[LABELS != 0]).any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_far_view_counts_by_its_role(smoothing: float) -> None:
    far = losses(LOGITS, LABELS, FAR, class_roles(CLASSES, CPU), smoothing)
    bird_N = LOGITS.softmax(dim=1)[:, 0]
    probs_N2 = torch.stack([bird_N, 1 - bird_N], dim=1)
    target_N2 = functional.one_hot((LABELS != 0).long(), 2) * (1 - smoothing) + smoothing / 2
    torch.testing.assert_close(far, -(target_N2 * probs_N2.log()).sum(dim=1))


def test_a_far_view_does_not_teach_which_drone_it_is() -> None:
    logits = LOGITS.clone().requires_grad_()
    roles = class_roles(CLASSES, CPU)
    losses(logits, LABELS, FAR, roles, 0.0).sum().backward()
    # Among drones the gradient leaves the odds as they are: it is in proportion to probability.
    shares = logits.grad[:, 1:] / LOGITS.softmax(dim=1)[:, 1:]
    torch.testing.assert_close(shares, shares[:, :1].expand_as(shares))


def test_airliners_and_kites_are_told_from_drones_but_not_from_each_other() -> None:
    classes = ClassSet.of(("Birds", "Drones", "Airliners", "Kites"))
    far = losses(LOGITS, LABELS, FAR, class_roles(classes, CPU), 0.0)
    probs_NK = LOGITS.softmax(dim=1)
    expected = torch.where(
        LABELS < 2, probs_NK[torch.arange(6), LABELS], probs_NK[:, 2:].sum(dim=1)
    )
    torch.testing.assert_close(far, -expected.log())


def test_of_one_role_all_views_count_by_their_classes() -> None:
    for names in (("planes", "kites", "moons"), ("Gulls", "Owls"), CLASSES[1:]):
        assert class_roles(ClassSet.of(names), CPU) is None
    expected = functional.cross_entropy(LOGITS, LABELS, reduction="none")
    assert torch.equal(losses(LOGITS, LABELS, FAR, None, 0.0), expected)
