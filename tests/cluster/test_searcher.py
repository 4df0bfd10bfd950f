"""Which trials of a study start, and what is recorded of them; without a running Ray."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from drone.cluster.schedulers import _grace_epochs, make_scheduler
from drone.cluster.searcher import FixedTrials, SampledTrials, StudySearcher
from drone.cluster.trial import UPDATE
from drone.search.sampler import Sampler
from drone.search.space import DEFAULT
from drone.search.study import Part, State, TrialRecord
from tests.search.studies import BASE, EPOCHS, study_spec, trial_record

GRACE_EPOCHS = _grace_epochs(BASE, DEFAULT)


class RecordingRecorder:
    """Remembers the calls."""

    part: Part = "trials"

    def __init__(self) -> None:
        self.started: list[int] = []
        self.updated: list[tuple[int, State]] = []

    def trial_started(self, record: TrialRecord) -> None:
        self.started.append(record.number)

    def trial_updated(self, record: TrialRecord) -> None:
        self.updated.append((record.number, record.state))


def open_study(
    folder: Path,
    recorder: RecordingRecorder,
    records: list[TrialRecord],
    num_trials: int = 2,
    **changes: Any,
) -> StudySearcher:
    """A searcher over a study's sampled trials, as an attempt that has these records opens it."""
    spec = study_spec(DEFAULT, num_trials)
    sampler = Sampler(folder, spec.name, BASE, DEFAULT, spec.first_trials, records)
    scheduler = make_scheduler(spec.scheduler, BASE, DEFAULT)
    source = SampledTrials(sampler, spec, records, scheduler, recorder)
    return StudySearcher(source, recorder, **{"concurrency": 4, "epochs": EPOCHS, **changes})


def report(epoch: int, score: float, state: State = "running", reason: str = "") -> dict[str, Any]:
    """What a trial reports after an epoch."""
    entry = {"epoch": epoch, "time_ms": epoch, "metrics": {"objective": score}}
    update = {
        "entry": entry,
        "state": state,
        "reason": reason,
        "usage": {"resource/wall_s": 1.0},
        "cache_reason": "reads",
    }
    return {"epoch": epoch, "objective": score, UPDATE: json.dumps(update)}


def test_no_trial_starts_when_the_time_budget_is_used_up(tmp_path: Path) -> None:
    answers, recorder = [True, True, False], RecordingRecorder()
    searcher = open_study(tmp_path, recorder, [], 10, may_start=lambda: answers.pop(0))
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert (first["number"], second["number"]) == (0, 1)
    assert searcher.suggest("c") == Searcher.FINISHED
    assert recorder.started == [0, 1]


def test_no_more_trials_run_than_may_run_at_the_same_time(tmp_path: Path) -> None:
    searcher = open_study(tmp_path, RecordingRecorder(), [], 3, concurrency=2)
    assert [searcher.suggest(name)["number"] for name in "ab"] == [0, 1]
    assert searcher.suggest("c") is None and not searcher.is_complete
    searcher.on_trial_complete("a", report(1, 0.5))
    assert searcher.suggest("c")["number"] == 2
    for name in "bc":
        searcher.on_trial_complete(name, report(1, 0.5))
    assert searcher.suggest("d") == Searcher.FINISHED and searcher.is_complete


def test_a_trial_that_has_ended_is_not_run_again(tmp_path: Path) -> None:
    ended, recorder = trial_record(0, [0.8] * EPOCHS, "finished"), RecordingRecorder()
    searcher = open_study(tmp_path, recorder, [ended])
    assert searcher.suggest("a")["number"] == 1
    assert recorder.started == [1] and ended.state == "finished"
    assert searcher.suggest("b") == Searcher.FINISHED


@pytest.mark.parametrize(
    ("scores", "state"), [([0.95] * EPOCHS, "finished"), ([0.1] * GRACE_EPOCHS, "pruned")]
)
def test_a_trial_that_was_killed_just_before_its_end_was_recorded_is_not_run_again(
    tmp_path: Path, scores: list[float], state: State
) -> None:
    better = [trial_record(number, [0.9] * EPOCHS, "finished") for number in range(6)]
    killed, recorder = trial_record(6, scores), RecordingRecorder()
    searcher = open_study(tmp_path, recorder, [*better, killed], num_trials=8)
    assert searcher.suggest("a")["number"] == 7
    assert recorder.started == [6, 7] and killed.state == state
    assert recorder.updated == [(6, state)]


def test_an_unfinished_trial_resumes_before_new_ones_start(tmp_path: Path) -> None:
    params = Sampler(tmp_path, "study", BASE, DEFAULT, [], []).suggest()[1]
    unfinished = replace(trial_record(0, [0.5, 0.6]), params=params)
    searcher = open_study(tmp_path, RecordingRecorder(), [unfinished])
    settings = searcher.suggest("a")
    assert (settings["number"], settings["params"], settings["reported"]) == (0, params, 2)
    assert searcher.suggest("b")["number"] == 1


def test_each_epoch_is_recorded_once(tmp_path: Path) -> None:
    record, recorder = trial_record(0, [0.5]), RecordingRecorder()
    searcher = StudySearcher(FixedTrials([record]), recorder, concurrency=1, epochs=3)
    searcher.suggest("a")
    for epoch, score in ((1, 0.5), (2, 0.6), (2, 0.6), (3, 0.7)):
        searcher.on_trial_result("a", report(epoch, score))
    searcher.on_trial_complete("a", report(3, 0.7))
    assert [entry["epoch"] for entry in record.history] == [1, 2, 3]
    assert (record.state, record.objective) == ("finished", 0.7)
    assert (record.usage, record.cache_reason) == ({"resource/wall_s": 1.0}, "reads")
    assert recorder.updated[-1] == (0, "finished")


@pytest.mark.parametrize(
    ("last", "error", "state", "reason"),
    [
        (report(1, 0.5), False, "pruned", ""),
        (report(1, 0.5, "stopped", "diverged"), False, "stopped", "diverged"),
        (report(1, 0.5, "failed", "no data"), False, "failed", "no data"),
        (None, True, "failed", "its process was lost several times (out of memory?)"),
    ],
)
def test_how_a_trial_ended_is_recorded(
    last: dict[str, Any] | None, error: bool, state: State, reason: str
) -> None:
    record, recorder = trial_record(0, []), RecordingRecorder()
    searcher = StudySearcher(FixedTrials([record]), recorder, concurrency=1, epochs=3)
    searcher.suggest("a")
    searcher.on_trial_complete("a", last, error)
    assert (record.state, record.reason) == (state, reason)
    assert recorder.updated == [(0, state)]


def test_given_trials_run_in_their_order_unless_they_have_ended() -> None:
    records = [trial_record(5, []), trial_record(3, [0.1], "failed"), trial_record(4, [0.2])]
    recorder = RecordingRecorder()
    searcher = StudySearcher(FixedTrials(records), recorder, concurrency=4, epochs=3)
    assert [searcher.suggest(name)["number"] for name in "ab"] == [5, 4]
    assert searcher.suggest("c") == Searcher.FINISHED
