"""Hands the trials of a study to Ray Tune, and records what they report."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from drone.cluster.schedulers import Pruner
from drone.cluster.trial import UPDATE
from drone.search.race import Pruned
from drone.search.sampler import Sampler
from drone.search.scorer import Scorer
from drone.search.study import Part, StudySpec, TrialRecord


class Recorder(Protocol):
    """Records every trial, in the process that launched them, before Ray Tune continues."""

    part: Part

    def trial_started(self, record: TrialRecord) -> None:
        """Records that a trial starts, or is resumed."""

    def trial_updated(self, record: TrialRecord) -> None:
        """Records that a trial has a new epoch, or has ended."""


class TrialSource(Protocol):
    """Where the trials come from."""

    def next_record(self) -> TrialRecord | None:
        """Returns the next trial to run, or None if there are no more for now."""

    def put_back(self, record: TrialRecord) -> None:
        """Takes a trial that waits for others."""


class FixedTrials:
    """A fixed list of trials, run in order."""

    def __init__(self, records: list[TrialRecord]) -> None:
        """Keeps the trials that have not ended."""
        self._unfinished = [record for record in records if not record.has_ended]

    def next_record(self) -> TrialRecord | None:
        """See TrialSource."""
        return self._unfinished.pop(0) if self._unfinished else None

    def put_back(self, record: TrialRecord) -> None:
        """See TrialSource."""
        self._unfinished.append(record)


class SampledTrials:
    """The trials of a study in the order in which they run.

    First those that an earlier attempt left within a fold, then what the sampler suggests, then
    those that wait for their next fold: the ones with the fewest folds first, of these the best.
    """

    def __init__(
        self,
        sampler: Sampler,
        spec: StudySpec,
        records: list[TrialRecord],
        pruner: Pruner,
        recorder: Recorder,
        scorer: Scorer,
        knows_enough: Callable[[], bool],
        is_over: Callable[[], bool],
    ) -> None:
        """Continues where the records stand.

        Args:
            sampler: Sampler that has seen the records.
            spec: Spec of the study.
            records: All trials so far.
            pruner: A new one; it replays the epochs of the trials so far.
            recorder: Records a trial that ends here without running again.
            scorer: Orders trials.
            knows_enough: Whether the study needs no further trials.
            is_over: Whether the time budget is used up.
        """
        self._sampler, self._spec = sampler, spec
        self._pruner, self._recorder, self._scorer = pruner, recorder, scorer
        self._knows_enough, self._is_over = knows_enough, is_over
        self._unfinished = [record for record in records if record.state == "running"]
        self._waiting = [record for record in records if record.state == "waiting"]
        for record in records:
            # Otherwise the first new trials would be compared with nothing, and never be pruned.
            if (record.has_ended and record.history) or record.state == "waiting":
                pruner.replay(record)

    def next_record(self) -> TrialRecord | None:
        """See TrialSource."""
        while self._unfinished and not self._is_over():
            record = self._unfinished.pop(0)
            pruned = self._pruner.replay(record) if record.history else None
            if not pruned and not _is_complete(record, self._spec.base.epochs):
                return record
            # Decided just before the earlier attempt was killed.
            self._end(record, pruned)
        is_full = self._sampler.num_started >= self._spec.num_trials
        if not (is_full or self._is_over() or self._knows_enough()):
            number, params = self._sampler.suggest()
            return TrialRecord(number, params, self._spec.base.seed, self._spec.folds)
        return self._next_waiting()

    def put_back(self, record: TrialRecord) -> None:
        """See TrialSource."""
        self._waiting.append(record)

    def _next_waiting(self) -> TrialRecord | None:
        while self._waiting:
            # Best first; the sort keeps that order among equals.
            ordered = self._scorer.ordered(self._waiting)
            record = min(ordered, key=self._scorer.num_complete_folds)
            self._waiting.remove(record)
            pruned = _OVER if self._is_over() else self._pruner.judge(record)
            if pruned is None:
                record.state = "running"
                return record
            self._end(record, pruned)
        return None

    def _end(self, record: TrialRecord, pruned: Pruned | None) -> None:
        """Ends a trial that is not running."""
        _end(record, pruned, self._spec.base.epochs)
        self._recorder.trial_started(record)
        self._recorder.trial_updated(record)


class StudySearcher(Searcher):  # type: ignore[misc]
    """Ray Tune's view of a study: which trial starts next, and where reports go."""

    def __init__(
        self,
        source: TrialSource,
        recorder: Recorder,
        scorer: Scorer,
        pruner: Pruner,
        *,
        concurrency: int,
    ) -> None:
        """Starts with the first trial of the source.

        Args:
            source: Where the trials come from.
            recorder: Records what the trials report.
            scorer: Scores the trials.
            pruner: Decides which trials end early.
            concurrency: Maximum number of trials at the same time.
        """
        super().__init__()
        self._source, self._recorder = source, recorder
        self._scorer, self._pruner = scorer, pruner
        self._concurrency = concurrency
        self._running: dict[str, TrialRecord] = {}
        self._pruned: dict[str, Pruned] = {}
        self._exhausted = False

    @property
    def is_complete(self) -> bool:
        """Whether every trial that may start has ended."""
        return not self._running and self._exhausted

    def suggest(self, trial_id: str) -> Any:
        """Returns the settings of the next trial, or None while the maximum number is running."""
        # None makes Ray Tune ask again later; FINISHED would end the search.
        if len(self._running) >= self._concurrency:
            return None
        record = self._source.next_record()
        if record is None and self._running:
            # One of them may have to wait for its next fold, and then be the next.
            return None
        if record is None:
            self._exhausted = True
            return Searcher.FINISHED
        self._running[trial_id] = record
        self._recorder.trial_started(record)
        return {
            "part": self._recorder.part,
            "number": record.number,
            "params": record.params,
            "seed": record.seed,
            "num_folds": record.num_folds,
            "until_fold": self._until_fold(record),
            "reported": len(record.history),
            "wall_s": record.usage.get("resource/wall_s", 0.0),
        }

    def take_report(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Records a report, once; returns whether the trial continues."""
        record = self._running.get(trial_id)
        if record is None:
            return False
        if self._update(record, result):
            if record.state == "running" and self._waits(record):
                record.state = "waiting"
            self._recorder.trial_updated(record)
            pruned = None if record.has_ended else self._pruner.judge(record)
            if pruned and record.state == "running":
                self._pruned[trial_id] = pruned
        return trial_id not in self._pruned

    def _waits(self, record: TrialRecord) -> bool:
        """Whether a trial waits for its next fold: it has completed one, but not all."""
        is_between = record.history[-1]["epoch"] == self._scorer.epochs
        is_complete = _is_complete(record, self._scorer.epochs)
        return self._pruner.fold_by_fold and is_between and not is_complete

    def _until_fold(self, record: TrialRecord) -> int:
        if not self._pruner.fold_by_fold:
            return record.num_folds
        return self._scorer.num_complete_folds(record) + 1

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Records how a trial ended."""
        record = self._running.pop(trial_id)
        if record.state == "waiting":
            self._source.put_back(record)
            return
        if result:
            self._update(record, result)
        if error:
            record.state = "failed"
            record.reason = "it was lost several times (out of memory, or no network?)"
        # A pruned trial sends no final report: it is stopped inside the previous one.
        elif record.state == "running":
            _end(record, self._pruned.pop(trial_id, None), self._scorer.epochs)
        self._recorder.trial_updated(record)

    def _update(self, record: TrialRecord, result: Mapping[str, Any]) -> bool:
        """Puts a report into the record, once; returns whether it has a new epoch."""
        if UPDATE not in result:
            return False
        update = json.loads(result[UPDATE])
        entry, epochs = update["entry"], self._scorer.epochs
        record.usage, record.cache_reason = update["usage"], update["cache_reason"]
        if update["state"] in ("stopped", "failed"):
            record.state, record.reason = update["state"], update["reason"]
        # Ray Tune repeats the last report at the end, and a restarted trial may repeat an epoch.
        if not entry or entry["fold"] * epochs + entry["epoch"] != len(record.history) + 1:
            return False
        record.history.append(entry)
        self._scorer.update(record)
        return True

    # Ray Tune saves its searcher now and then; a study resumes from its own files instead.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Does nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing."""


class StudyScheduler(FIFOScheduler):  # type: ignore[misc]
    """Hands each report to the study, which says whether the trial continues."""

    def __init__(self, searcher: StudySearcher) -> None:
        """Asks this searcher."""
        super().__init__()
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """Returns whether the trial continues after this report."""
        goes_on = self._searcher.take_report(trial.trial_id, result)
        decision: str = TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP
        return decision


_OVER = Pruned("the time budget was used up")


def _is_complete(record: TrialRecord, epochs: int) -> bool:
    return len(record.history) >= record.num_folds * epochs


def _end(record: TrialRecord, pruned: Pruned | None, epochs: int) -> None:
    """Notes that a trial has ended by itself or was pruned."""
    record.state = "finished" if _is_complete(record, epochs) else "pruned"
    if pruned and record.state == "pruned":
        record.reason, record.pruned_by = pruned.reason, pruned.by
