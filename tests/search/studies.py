"""Studies and trials for tests."""

from functools import lru_cache
from typing import Any

import numpy as np

from drone.config import override
from drone.labels import CLASSES
from drone.presets import get_preset
from drone.search.domain import Space
from drone.search.scorer import Scorer
from drone.search.scoring import HeldOut, Objective
from drone.search.study import State, StudySpec, TrialRecord
from drone.training.config import TrainConfig
from drone.training.predictions import encode

EPOCHS = 8
BASE: TrainConfig = override(get_preset("finetune"), {"epochs": EPOCHS}, "test")

FOLD_SIZE = 80


def scorer(
    num_folds: int = 1,
    objective: Objective = "log_loss",
    epochs: int = EPOCHS,
    first_fold_selects: bool = False,
) -> Scorer:
    """Scores trials on folds of 80 images, 20 of each class."""
    labels_N = np.arange(FOLD_SIZE) % len(CLASSES)
    groups = tuple(np.arange(FOLD_SIZE) + FOLD_SIZE * fold for fold in range(num_folds))
    held_out = HeldOut((labels_N,) * num_folds, groups, CLASSES)
    return Scorer(held_out, objective, epochs, first_fold_selects)


@lru_cache(maxsize=1000)
def predictions(fold: int, quality: float, luck: int = 0) -> str:
    """What a model predicts of a fold: the better, the higher its quality (2 is fair, 4 good).

    Args:
        fold: The fold, whose images are as hard for every model.
        quality: Mean logit of the right class.
        luck: Another number gives the same quality by other images.
    """
    hard = np.random.default_rng(fold).normal(0, 1.5, (FOLD_SIZE, len(CLASSES)))
    own = np.random.default_rng([fold, luck, 1]).normal(0, 0.1, hard.shape)
    logits_NK = hard + own
    logits_NK[np.arange(FOLD_SIZE), np.arange(FOLD_SIZE) % len(CLASSES)] += quality
    probs_NK = np.exp(logits_NK)
    return encode((probs_NK / probs_NK.sum(axis=1, keepdims=True)).astype(np.float32))


def entry(epoch: int, quality: float, fold: int = 0, luck: int = 0) -> dict[str, Any]:
    """An epoch of a trial, without its score."""
    return {
        "epoch": epoch,
        "time_ms": epoch,
        "fold": fold,
        "metrics": {"validation/loss": 3 - quality / 2, "train/loss": 3 - quality / 2},
        "predictions": predictions(fold, quality, luck),
    }


def trial_record(
    number: int,
    qualities: list[float],
    state: State = "running",
    params: dict[str, Any] | None = None,
    *,
    num_folds: int = 1,
    objective: Objective = "log_loss",
    epochs: int = EPOCHS,
) -> TrialRecord:
    """A trial with an epoch of each of these qualities, fold after fold."""
    record = TrialRecord(number, params or {}, 0, num_folds, state=state)
    scores = scorer(num_folds, objective, epochs)
    for count, quality in enumerate(qualities):
        fold, epoch = divmod(count, epochs)
        record.history.append(entry(epoch + 1, quality, fold, number))
        scores.update(record)
    if record.has_ended:
        scores.finish(record)
    return record


def study_spec(space: Space, num_trials: int, scheduler: str = "asha") -> StudySpec:
    """A study without first trials of its own."""
    return StudySpec(
        name="study",
        base=BASE,
        space=space,
        data="/data",
        fingerprint="f" * 64,
        weights="imagenet",
        first_trials=[],
        num_trials=num_trials,
        scheduler=scheduler,
        folds=1,
        objective="log_loss",
        run_id="1",
        storage="/runs",
    )
