"""Which trials of a study start, and what is recorded of them; without a running Ray."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from drone.cluster.schedulers import _grace_epochs, make_pruner
from drone.cluster.searcher import FixedTrials, SampledTrials, StudySearcher
from drone.cluster.trial import UPDATE
from drone.search.sampler import Sampler
from drone.search.space import DEFAULT
from drone.search.study import Part, State, TrialRecord
from tests.search.studies import BASE, EPOCHS, entry, scorer, study_spec, trial_record

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
    folds: int = 1,
    **changes: Any,
) -> StudySearcher:
    """A searcher over a study's sampled trials, as an attempt that has these records opens it."""
    spec = study_spec(DEFAULT, num_trials)
    spec = replace(spec, folds=folds, scheduler="asha" if folds == 1 else "race")
    first, scores = spec.first_trials, scorer(folds)
    sampler = Sampler(folder, spec.name, BASE, DEFAULT, first, "log_loss", EPOCHS, records)
    pruner = make_pruner(spec.scheduler, BASE, DEFAULT, scores)
    stops = [changes.pop(name, lambda: False) for name in ("knows_enough", "is_over")]
    source = SampledTrials(sampler, spec, records, pruner, recorder, scores, *stops)
    return StudySearcher(source, recorder, scores, pruner, **{"concurrency": 4, **changes})


def open_fixed(
    records: list[TrialRecord], recorder: RecordingRecorder, concurrency: int = 1
) -> StudySearcher:
    """A searcher over given trials of three epochs, which are never pruned."""
    base = replace(BASE, epochs=3)
    scores = scorer(epochs=3)
    pruner = make_pruner("none", base, DEFAULT, scores)
    return StudySearcher(FixedTrials(records), recorder, scores, pruner, concurrency=concurrency)


def report(
    epoch: int, quality: float, state: State = "running", reason: str = "", fold: int = 0
) -> dict[str, Any]:
    """What a trial reports after an epoch."""
    update = {
        "entry": entry(epoch, quality, fold),
        "state": state,
        "reason": reason,
        "usage": {"resource/wall_s": 1.0},
        "cache_reason": "reads",
    }
    return {UPDATE: json.dumps(update)}


def test_no_trial_starts_when_the_time_budget_is_used_up(tmp_path: Path) -> None:
    answers, recorder = [False, False, True, True], RecordingRecorder()
    searcher = open_study(tmp_path, recorder, [], 10, is_over=lambda: answers.pop(0))
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert (first["number"], second["number"]) == (0, 1)
    assert searcher.suggest("c") is None and recorder.started == [0, 1]
    for name in "ab":
        searcher.on_trial_complete(name, report(1, 0.5))
    assert searcher.suggest("c") == Searcher.FINISHED and searcher.is_complete


def test_what_waits_when_the_time_budget_is_used_up_ends(tmp_path: Path) -> None:
    waiting, recorder = trial_record(0, [3.0] * EPOCHS, "waiting", num_folds=3), RecordingRecorder()
    searcher = open_study(tmp_path, recorder, [waiting], 10, folds=3, is_over=lambda: True)
    assert searcher.suggest("a") == Searcher.FINISHED and searcher.is_complete
    assert (waiting.state, waiting.reason) == ("pruned", "the time budget was used up")
    assert recorder.updated == [(0, "pruned")]


def test_no_more_trials_run_than_may_run_at_the_same_time(tmp_path: Path) -> None:
    searcher = open_study(tmp_path, RecordingRecorder(), [], 3, concurrency=2)
    assert [searcher.suggest(name)["number"] for name in "ab"] == [0, 1]
    assert searcher.suggest("c") is None and not searcher.is_complete
    searcher.on_trial_complete("a", report(1, 0.5))
    assert searcher.suggest("c")["number"] == 2 and searcher.suggest("d") is None
    for name in "bc":
        searcher.on_trial_complete(name, report(1, 0.5))
    assert searcher.suggest("d") == Searcher.FINISHED and searcher.is_complete


def test_a_trial_that_has_ended_is_not_run_again(tmp_path: Path) -> None:
    ended, recorder = trial_record(0, [3.0] * EPOCHS, "finished"), RecordingRecorder()
    searcher = open_study(tmp_path, recorder, [ended])
    assert searcher.suggest("a")["number"] == 1
    assert recorder.started == [1] and ended.state == "finished"
    assert searcher.suggest("b") is None


@pytest.mark.parametrize(
    ("scores", "state"), [([4.0] * EPOCHS, "finished"), ([0.5] * GRACE_EPOCHS, "pruned")]
)
def test_a_trial_that_was_killed_just_before_its_end_was_recorded_is_not_run_again(
    tmp_path: Path, scores: list[float], state: State
) -> None:
    better = [trial_record(number, [3.0 + number / 10] * EPOCHS, "finished") for number in range(6)]
    killed, recorder = trial_record(6, scores), RecordingRecorder()
    searcher = open_study(tmp_path, recorder, [*better, killed], num_trials=8)
    assert searcher.suggest("a")["number"] == 7
    assert recorder.started == [6, 7] and killed.state == state
    assert recorder.updated == [(6, state)]


def test_an_unfinished_trial_resumes_before_new_ones_start(tmp_path: Path) -> None:
    params = Sampler(tmp_path, "study", BASE, DEFAULT, [], "log_loss", EPOCHS, []).suggest()[1]
    unfinished = replace(trial_record(0, [0.5, 0.6]), params=params)
    searcher = open_study(tmp_path, RecordingRecorder(), [unfinished])
    settings = searcher.suggest("a")
    assert (settings["number"], settings["params"], settings["reported"]) == (0, params, 2)
    assert searcher.suggest("b")["number"] == 1


def test_each_epoch_is_recorded_once(tmp_path: Path) -> None:
    record, recorder = trial_record(0, [1.0], epochs=3), RecordingRecorder()
    searcher = open_fixed([record], recorder)
    searcher.suggest("a")
    for epoch, quality in ((1, 1.0), (2, 2.0), (2, 2.0), (3, 3.0)):
        assert searcher.take_report("a", report(epoch, quality))
    searcher.on_trial_complete("a", report(3, 3.0))
    assert [entry["epoch"] for entry in record.history] == [1, 2, 3]
    expected = trial_record(0, [1.0, 2.0, 3.0], "finished", epochs=3)
    assert (record.state, record.score) == ("finished", expected.score)
    assert (record.usage, record.cache_reason) == ({"resource/wall_s": 1.0}, "reads")
    assert recorder.updated[-1] == (0, "finished")


@pytest.mark.parametrize(
    ("last", "error", "state", "reason"),
    [
        (report(1, 0.5), False, "pruned", ""),
        (report(1, 0.5, "stopped", "diverged"), False, "stopped", "diverged"),
        (report(1, 0.5, "failed", "no data"), False, "failed", "no data"),
        (
            None,
            True,
            "failed",
            "it was lost several times (out of memory, or no network?)",
        ),
    ],
)
def test_how_a_trial_ended_is_recorded(
    last: dict[str, Any] | None, error: bool, state: State, reason: str
) -> None:
    record, recorder = trial_record(0, []), RecordingRecorder()
    searcher = open_fixed([record], recorder)
    searcher.suggest("a")
    searcher.on_trial_complete("a", last, error)
    assert (record.state, record.reason) == (state, reason)
    assert recorder.updated == [(0, state)]


def test_given_trials_run_in_their_order_unless_they_have_ended() -> None:
    records = [trial_record(5, []), trial_record(3, [0.1], "failed"), trial_record(4, [0.2])]
    recorder = RecordingRecorder()
    searcher = open_fixed(records, recorder, concurrency=4)
    assert [searcher.suggest(name)["number"] for name in "ab"] == [5, 4]
    assert searcher.suggest("c") is None


def test_a_trial_that_is_judged_worse_ends_and_says_by_which(tmp_path: Path) -> None:
    better = [trial_record(number, [3.0 + number / 10] * EPOCHS, "finished") for number in (0, 1)]
    lagging, recorder = trial_record(2, []), RecordingRecorder()
    searcher = open_study(tmp_path, recorder, [*better, lagging], num_trials=3)
    searcher.suggest("a")
    answers = []
    for epoch in range(1, EPOCHS):
        answers.append(searcher.take_report("a", report(epoch, 0.3)))
        if not answers[-1]:
            break
    assert answers[: GRACE_EPOCHS - 1] == [True] * (GRACE_EPOCHS - 1) and not answers[-1]
    searcher.on_trial_complete("a", report(len(answers), 0.3))
    assert (lagging.state, lagging.reason) == ("pruned", "its score is behind that of other trials")
    assert not searcher.take_report("a", report(EPOCHS, 0.3))  # It no longer runs.


def test_no_trial_starts_when_the_study_knows_enough(tmp_path: Path) -> None:
    unfinished, recorder = trial_record(0, [1.0]), RecordingRecorder()
    searcher = open_study(tmp_path, recorder, [unfinished], 10, knows_enough=lambda: True)
    assert searcher.suggest("a")["number"] == 0  # What has begun is finished.
    assert searcher.suggest("b") is None
    searcher.on_trial_complete("a", report(2, 1.0))
    assert searcher.suggest("b") == Searcher.FINISHED and searcher.is_complete


def test_in_a_race_all_trials_have_a_fold_before_the_best_get_a_second_one(tmp_path: Path) -> None:
    recorder = RecordingRecorder()
    searcher = open_study(tmp_path, recorder, [], 3, folds=2, concurrency=1)
    for number, quality in enumerate((1.9, 3.0, 1.8)):
        assert searcher.suggest(f"{number}")["number"] == number
        answers = [
            # Alike at the rungs within the fold.
            searcher.take_report(f"{number}", report(epoch, quality if epoch > EPOCHS // 2 else 1))
            for epoch in range(1, EPOCHS + 1)
        ]
        assert all(answers)
        assert recorder.updated[-1] == (number, "waiting")
        searcher.on_trial_complete(f"{number}")
    for number, quality in ((1, 3.0), (0, 1.9)):  # The best, and the one to compare it with.
        again = searcher.suggest("again")
        assert (again["number"], again["reported"], again["wall_s"]) == (number, EPOCHS, 1.0)
        for epoch in range(1, EPOCHS + 1):
            assert searcher.take_report("again", report(epoch, quality, fold=1))
        searcher.on_trial_complete("again")
        assert recorder.updated[-1] == (number, "finished")
    assert searcher.suggest("last") == Searcher.FINISHED and searcher.is_complete
    assert recorder.updated[-1] == (2, "pruned")


def test_a_killed_race_continues_within_a_fold_before_anything_else(tmp_path: Path) -> None:
    running = trial_record(1, [3.0] * (EPOCHS + 2), num_folds=2)
    waiting = trial_record(0, [3.1] * EPOCHS, "waiting", num_folds=2)
    searcher = open_study(tmp_path, RecordingRecorder(), [waiting, running], 3, folds=2)
    assert [searcher.suggest(name)["number"] for name in "abc"] == [1, 2, 0]
