"""Which epoch is the best one."""

import pytest

from drone.training.best_epoch import BestEpochBy, best_epoch, is_better

HISTORY = [
    {"epoch": number, "metrics": {"validation/loss": loss, "validation/macro_f1": macro_f1}}
    for number, loss, macro_f1 in [(1, 0.9, 0.5), (2, 0.4, 0.7), (3, 0.5, 0.8), (4, 0.6, 0.6)]
]


@pytest.mark.parametrize(("by", "epoch"), [("loss", 2), ("macro_f1", 3), ("last", 4)])
def test_the_epoch_whose_weights_are_kept_is_the_one_that_is_shown(
    by: BestEpochBy, epoch: int
) -> None:
    assert best_epoch(HISTORY, by)["epoch"] == epoch
    kept, best = HISTORY[0], (0.5, 0.9)
    for entry in HISTORY[1:]:
        metrics = entry["metrics"]
        new = (metrics["validation/macro_f1"], metrics["validation/loss"])
        if is_better(new, best, by):
            kept, best = entry, new
    assert kept["epoch"] == epoch


def test_without_validation_images_the_last_epoch_counts() -> None:
    assert (
        best_epoch([{"epoch": 1, "metrics": {}}, {"epoch": 2, "metrics": {}}], "loss")["epoch"] == 2
    )
