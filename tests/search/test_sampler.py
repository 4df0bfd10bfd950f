"""The sampler: its suggestions depend on the seed and the trials alone, over any interruption."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drone.search.domain import Choice, Range
from drone.search.sampler import DATABASE_FILE, Sampler
from drone.search.study import State, TrialRecord
from tests.search.studies import BASE, EPOCHS, trial_record

SPACE = {
    "batch_size": Range(8, 64),
    "optim.lr_head": Range(1e-4, 1e-2, log=True),
    "model.head_width": Choice((0, 64)),
}
FIRST_TRIALS = [
    {"batch_size": 9, "optim.lr_head": 1e-3, "model.head_width": 0},
    {"batch_size": 10, "optim.lr_head": 2e-3, "model.head_width": 64},
]
STATES: dict[int, State] = {3: "failed", 5: "pruned", 7: "stopped", 13: "running"}
"""All other trials finish. More than the sampler's random trials, so that it reads the scores."""


def open_sampler(folder: Path, records: Sequence[TrialRecord] = ()) -> Sampler:
    folder.mkdir(exist_ok=True)
    return Sampler(folder, "study", BASE, SPACE, FIRST_TRIALS, "log_loss", EPOCHS, records)


def run_trials(sampler: Sampler, count: int) -> list[TrialRecord]:
    """Lets the sampler suggest trials, and tells it how they ended."""
    records = []
    for _ in range(count):
        number, params = sampler.suggest()
        scores = [params["batch_size"] / 40, params["batch_size"] / 20]
        record = trial_record(number, scores, STATES.get(number, "finished"), params)
        sampler.tell(record)
        records.append(record)
    return records


def database(sampler: Sampler) -> list[tuple[Any, ...]]:
    """What Optuna's database holds of each trial."""
    return [
        (trial.number, trial.state, trial.params, trial.values, trial.intermediate_values)
        for trial in sampler.study.get_trials()
    ]


@pytest.mark.parametrize("damage", ["lost", "damaged", "another study"])
def test_optunas_database_is_rebuilt_from_the_trials(tmp_path: Path, damage: str) -> None:
    whole = open_sampler(tmp_path / "whole")
    records = run_trials(whole, 14)
    folder = tmp_path / damage
    folder.mkdir()
    if damage == "damaged":
        (folder / DATABASE_FILE).write_bytes(b"no database" * 1000)
    elif damage == "another study":
        run_trials(open_sampler(folder), 3)
    rebuilt = open_sampler(folder, records)
    assert database(rebuilt) == database(whole)
    assert rebuilt.num_started == whole.num_started == 14
    assert rebuilt.suggest() == whole.suggest()


def test_a_score_that_is_no_number_is_not_learnt(tmp_path: Path) -> None:
    sampler = open_sampler(tmp_path / "whole")
    records = run_trials(sampler, 2)
    number, params = sampler.suggest()
    record = trial_record(number, [3.0], "stopped", params)
    record.history[-1]["metrics"]["score"] = float("nan")
    sampler.tell(record)
    assert sampler.study.get_trials()[number].state.name == "FAIL"
    rebuilt = open_sampler(tmp_path / "again", [*records, record])
    assert database(rebuilt) == database(sampler)


def test_an_unfinished_trial_of_an_earlier_attempt_is_updated_when_it_ends(tmp_path: Path) -> None:
    whole, resumed = open_sampler(tmp_path / "whole"), tmp_path / "resumed"
    records = run_trials(whole, 14)
    sampler = open_sampler(resumed, records)
    assert records[13].state == "running"
    ended = trial_record(13, [0, 0, 3.0], "finished")
    records[13].history += ended.history[2:]
    records[13].state, records[13].score = "finished", ended.score
    for each in (whole, sampler):
        each.tell(records[13])
        each.tell(records[13])  # Harmless if repeated.
    assert database(sampler) == database(whole)
    assert sampler.suggest() == whole.suggest()


def test_a_trial_that_waits_for_its_next_fold_is_learnt_once(tmp_path: Path) -> None:
    sampler = open_sampler(tmp_path / "a")
    number, params = sampler.suggest()
    waiting = trial_record(number, [3.0] * EPOCHS, "waiting", params, num_folds=2)
    sampler.tell(waiting)
    known = database(sampler)
    assert known[0][1].name == "COMPLETE" and known[0][3] == [waiting.score]
    longer = trial_record(number, [3.0] * EPOCHS + [1.0] * EPOCHS, "finished", params, num_folds=2)
    assert longer.score != waiting.score
    sampler.tell(longer)
    assert database(sampler) == known
    assert database(open_sampler(tmp_path / "b", [longer])) == known


def test_the_first_trials_come_first_and_once(tmp_path: Path) -> None:
    sampler = open_sampler(tmp_path / "a")
    records = run_trials(sampler, 1)
    assert records[0].params == FIRST_TRIALS[0]
    resumed = open_sampler(tmp_path / "a", records)
    assert resumed.suggest() == (1, FIRST_TRIALS[1])
    number, params = resumed.suggest()
    assert number == 2 and params not in FIRST_TRIALS


def test_the_number_of_a_trial_whose_file_was_lost_is_not_given_again(tmp_path: Path) -> None:
    records = run_trials(open_sampler(tmp_path / "a"), 5)
    resumed = open_sampler(tmp_path / "b", [record for record in records if record.number != 2])
    assert resumed.num_started == 5
    assert [trial.state.name for trial in resumed.study.get_trials()] == [
        "COMPLETE",
        "COMPLETE",
        "FAIL",
        "FAIL",
        "COMPLETE",
    ]
    assert resumed.suggest()[0] == 5


def test_a_seed_decides_the_suggestions(tmp_path: Path) -> None:
    same = [run_trials(open_sampler(tmp_path / name), 4) for name in "ab"]
    assert same[0] == same[1]
    other = Sampler(
        tmp_path, "study", replace(BASE, seed=1), SPACE, FIRST_TRIALS, "log_loss", EPOCHS, []
    )
    assert [record.params for record in run_trials(other, 4)] != [r.params for r in same[0]]


def test_importances_count_pruned_trials_and_have_intervals(tmp_path: Path) -> None:
    sampler = open_sampler(tmp_path / "a")
    assert sampler.importances() == {}
    run_trials(sampler, 30)
    importances = sampler.importances()
    assert max(importances, key=lambda name: importances[name].share) == "batch_size"
    assert sum(importance.share for importance in importances.values()) == pytest.approx(1)
    for importance in importances.values():
        assert importance.low <= importance.share <= importance.high
