"""What ends trials, and what lets them begin; without a Ray that runs."""

from pathlib import Path

import pytest
from ray.tune.search import Searcher

from drone.adapters import optuna_study, ray_tune
from drone.adapters.ray_tune import make_scheduler, recall
from drone.config import override
from drone.presets import get
from drone.search.space import DEFAULT
from drone.search.study import TrialRecord

BASE = override(get("finetune"), {"epochs": 8}, "test")
GRACE = ray_tune.grace_epochs(BASE, DEFAULT)


def record(number: int, scores: list[float]) -> TrialRecord:
    history = [
        {"epoch": epoch, "metrics": {"objective": score}}
        for epoch, score in enumerate(scores, start=1)
    ]
    return TrialRecord(number, {}, 0, history=history, objective=scores[-1])


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_trial_that_lags_behind_is_ended_but_not_before_its_head_has_learnt(name: str) -> None:
    scheduler = make_scheduler(name, BASE, DEFAULT)
    for number in range(6):
        assert not recall(scheduler, f"good-{number}", record(number, [0.8 + number / 100] * 7))
    young = record(7, [0.1] * (GRACE - 1))
    assert not recall(scheduler, "young", young)
    ends = [recall(scheduler, f"lagging-{n}", record(n, [0.1] * n)) for n in range(1, 8)]
    assert any(ends[GRACE - 1 :]) and not any(ends[: GRACE - 1])
    assert not recall(scheduler, "leading", record(9, [0.9] * (GRACE + 3)))


def test_nothing_is_ended_if_nobody_wants_it() -> None:
    scheduler = make_scheduler("none", BASE, DEFAULT)
    for number in range(6):
        recall(scheduler, f"good-{number}", record(number, [0.8] * 8))
    assert not recall(scheduler, "bad", record(8, [0.1] * 7))


class Heard:
    """A recorder that only listens."""

    def __init__(self) -> None:
        self.trials: list[int] = []

    def began(self, part: str, record: TrialRecord) -> None:
        self.trials.append(record.number)

    def changed(self, part: str, record: TrialRecord) -> None:
        """Not of interest."""


def test_no_trial_begins_when_the_time_is_over(tmp_path: Path) -> None:
    study = optuna_study.open_study(tmp_path, "timed", optuna_study.RepeatableTPE(0))
    scheduler = make_scheduler("none", BASE, DEFAULT)
    source = ray_tune.StudySearch(study, DEFAULT, BASE, 10, [], scheduler)
    left, heard = [True, True, False], Heard()
    source.prepare("trials", heard, 4, BASE.epochs, lambda: left.pop(0))
    first, second = source.suggest("a"), source.suggest("b")
    assert (first["number"], second["number"]) == (0, 1)
    assert source.suggest("c") == Searcher.FINISHED
    assert heard.trials == [0, 1]


def resumed(folder: Path, known: TrialRecord) -> ray_tune.StudySearch:
    """A study whose trial 0 is known, and of which Optuna has not heard the end."""
    study = optuna_study.open_study(folder, "killed", optuna_study.RepeatableTPE(0))
    study.ask()
    scheduler = make_scheduler("asha", BASE, DEFAULT)
    return ray_tune.StudySearch(study, DEFAULT, BASE, 2, [known], scheduler)


def test_a_trial_that_is_over_is_not_begun_again_where_optuna_does_not_know(tmp_path: Path) -> None:
    known = record(0, [0.8] * BASE.epochs)
    known.state = "finished"
    heard, source = Heard(), resumed(tmp_path, known)
    source.prepare("trials", heard, 1, BASE.epochs, lambda: True)
    assert source.suggest("a")["number"] == 1
    assert heard.trials == [1] and known.state == "finished"


def test_a_trial_that_was_killed_after_its_last_epoch_is_finished(tmp_path: Path) -> None:
    known = record(0, [0.8] * BASE.epochs)
    heard, source = Heard(), resumed(tmp_path, known)
    source.prepare("trials", heard, 1, BASE.epochs, lambda: True)
    assert source.suggest("a")["number"] == 1
    assert heard.trials == [0, 1] and known.state == "finished"
