"""Studies and trials for tests."""

from typing import Any

from drone.config import override
from drone.presets import get_preset
from drone.search.domain import Space
from drone.search.study import State, StudySpec, TrialRecord
from drone.training.config import TrainConfig

EPOCHS = 8
BASE: TrainConfig = override(get_preset("finetune"), {"epochs": EPOCHS}, "test")


def trial_record(
    number: int,
    scores: list[float],
    state: State = "running",
    params: dict[str, Any] | None = None,
) -> TrialRecord:
    """A trial with a score for each of its epochs."""
    history = [
        {"epoch": epoch, "time_ms": epoch, "metrics": {"objective": score}}
        for epoch, score in enumerate(scores, start=1)
    ]
    objective = scores[-1] if scores else 0.0
    return TrialRecord(number, params or {}, 0, state=state, objective=objective, history=history)


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
        run_id="1",
        storage="/runs",
    )
