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
        """Returns the next trial to run, or None if there are no more."""


class FixedTrials:
    """A fixed list of trials, run in order."""

    def __init__(self, records: list[TrialRecord]) -> None:
        """Keeps the trials that have not ended."""
        self._waiting = [record for record in records if not record.has_ended]

    def next_record(self) -> TrialRecord | None:
        """See TrialSource."""
        return self._waiting.pop(0) if self._waiting else None


class SampledTrials:
    """The unfinished trials of an earlier attempt, then what the sampler suggests."""

    def __init__(
        self,
        sampler: Sampler,
        spec: StudySpec,
        records: list[TrialRecord],
        pruner: Pruner,
        recorder: Recorder,
        knows_enough: Callable[[], bool],
    ) -> None:
        """Continues where the records stand.

        Args:
            sampler: Sampler that has seen the records.
            spec: Spec of the study.
            records: All trials so far.
            pruner: A new one; it replays the epochs of the trials so far.
            recorder: Records a trial that ends here without running again.
            knows_enough: Whether the study needs no further trials.
        """
        self._sampler, self._spec = sampler, spec
        self._pruner, self._recorder = pruner, recorder
        self._knows_enough = knows_enough
        self._waiting = [record for record in records if not record.has_ended]
        for record in records:
            if record.has_ended and record.history:
                # Otherwise the first new trials would be compared with nothing, and never be
                # pruned.
                pruner.replay(record)

    def next_record(self) -> TrialRecord | None:
        """See TrialSource."""
        while self._waiting:
            record = self._waiting.pop(0)
            pruned = self._pruner.replay(record) if record.history else None
            if not pruned and not _is_complete(record, self._spec.base.epochs):
                return record
            # Decided just before the earlier attempt was killed.
            _end(record, pruned, self._spec.base.epochs)
            self._recorder.trial_started(record)
            self._recorder.trial_updated(record)
        if self._sampler.num_started >= self._spec.num_trials or self._knows_enough():
            return None
        number, params = self._sampler.suggest()
        return TrialRecord(number, params, self._spec.base.seed, self._spec.folds)


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
        may_start: Callable[[], bool] = lambda: True,
    ) -> None:
        """Starts with the first trial of the source.

        Args:
            source: Where the trials come from.
            recorder: Records what the trials report.
            scorer: Scores the trials.
            pruner: Decides which trials end early.
            concurrency: Maximum number of trials at the same time.
            may_start: Whether another trial may start (the time budget is not used up).
        """
        super().__init__()
        self._source, self._recorder = source, recorder
        self._scorer, self._pruner = scorer, pruner
        self._concurrency, self._may_start = concurrency, may_start
        self._running: dict[str, TrialRecord] = {}
        self._pruned: dict[str, Pruned] = {}
        self._exhausted = False

    @property
    def is_complete(self) -> bool:
        """Whether every trial that may start has ended."""
        return not self._running and (self._exhausted or not self._may_start())

    def suggest(self, trial_id: str) -> Any:
        """Returns the settings of the next trial, or None while the maximum number is running."""
        # None makes Ray Tune ask again later; FINISHED would end the search.
        if len(self._running) >= self._concurrency:
            return None
        if not self._may_start():
            return Searcher.FINISHED
        record = self._source.next_record()
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
            "reported": len(record.history),
        }

    def take_report(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Records a report, once; returns whether the trial continues."""
        record = self._running.get(trial_id)
        if record is None:
            return False
        if self._update(record, result):
            self._recorder.trial_updated(record)
            if record.state == "running" and (pruned := self._pruner.judge(record)):
                self._pruned[trial_id] = pruned
        return trial_id not in self._pruned

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Records how a trial ended."""
        record = self._running.pop(trial_id)
        if result:
            self._update(record, result)
        if error:
            record.state = "failed"
            record.reason = "its process was lost several times (out of memory?)"
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


def _is_complete(record: TrialRecord, epochs: int) -> bool:
    return len(record.history) >= record.num_folds * epochs


def _end(record: TrialRecord, pruned: Pruned | None, epochs: int) -> None:
    """Notes that a trial has ended by itself or was pruned."""
    record.state = "finished" if _is_complete(record, epochs) else "pruned"
    if pruned and record.state == "pruned":
        record.reason, record.pruned_by = pruned.reason, pruned.by
