"""Hands the trials of a study to Ray Tune, and records what they report."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from drone.cluster.schedulers import METRIC, replay
from drone.cluster.trial import UPDATE
from drone.search.sampler import Sampler
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

    def next_record(self, trial_id: str) -> TrialRecord | None:
        """Returns the next trial to run, or None if there are no more.

        Args:
            trial_id: Id under which Ray Tune will run the trial.
        """


class FixedTrials:
    """A fixed list of trials, run in order."""

    def __init__(self, records: list[TrialRecord]) -> None:
        """Keeps the trials that have not ended."""
        self._waiting = [record for record in records if not record.has_ended]

    def next_record(self, trial_id: str) -> TrialRecord | None:
        """See TrialSource."""
        return self._waiting.pop(0) if self._waiting else None


class SampledTrials:
    """The unfinished trials of an earlier attempt, then what the sampler suggests."""

    def __init__(
        self,
        sampler: Sampler,
        spec: StudySpec,
        records: list[TrialRecord],
        scheduler: TrialScheduler,
        recorder: Recorder,
    ) -> None:
        """Continues where the records stand.

        Args:
            sampler: Sampler that has seen the records.
            spec: Spec of the study.
            records: All trials so far.
            scheduler: A new one; it replays the epochs of the trials so far.
            recorder: Records a trial that ends here without running again.
        """
        self._sampler, self._spec = sampler, spec
        self._scheduler, self._recorder = scheduler, recorder
        self._waiting = [record for record in records if not record.has_ended]
        for record in records:
            if record.has_ended:
                # Otherwise the first new trials would be compared with nothing, and never be
                # pruned.
                replay(scheduler, f"earlier-{record.number}", record)

    def next_record(self, trial_id: str) -> TrialRecord | None:
        """See TrialSource."""
        while self._waiting:
            record = self._waiting.pop(0)
            if not record.history or not replay(self._scheduler, trial_id, record):
                return record
            # The scheduler's decision came just before the earlier attempt was killed.
            num_epochs = len(record.history)
            record.state = "finished" if num_epochs >= self._spec.base.epochs else "pruned"
            self._recorder.trial_started(record)
            self._recorder.trial_updated(record)
        if self._sampler.num_started >= self._spec.num_trials:
            return None
        number, params = self._sampler.suggest()
        return TrialRecord(number, params, self._spec.base.seed)


class StudySearcher(Searcher):  # type: ignore[misc]
    """Ray Tune's view of a study: which trial starts next, and where reports go."""

    def __init__(
        self,
        source: TrialSource,
        recorder: Recorder,
        *,
        concurrency: int,
        epochs: int,
        may_start: Callable[[], bool] = lambda: True,
    ) -> None:
        """Starts with the first trial of the source.

        Args:
            source: Where the trials come from.
            recorder: Records what the trials report.
            concurrency: Maximum number of trials at the same time.
            epochs: Epochs of a complete trial.
            may_start: Whether another trial may start (the time budget is not used up).
        """
        super().__init__(metric=METRIC, mode="max")
        self._source, self._recorder = source, recorder
        self._concurrency, self._epochs, self._may_start = concurrency, epochs, may_start
        self._running: dict[str, TrialRecord] = {}
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
        record = self._source.next_record(trial_id)
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
            "fold": record.fold,
            "reported": len(record.history),
        }

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Records an epoch, or the reason why there are no more."""
        record = self._running[trial_id]
        _update(record, result)
        self._recorder.trial_updated(record)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Records the end of a trial."""
        record = self._running.pop(trial_id)
        if result:
            _update(record, result)
        if error:
            record.state = "failed"
            record.reason = "its process was lost several times (out of memory?)"
        # A pruned trial sends no final report: the scheduler stops it inside the previous one.
        elif record.state == "running":
            record.state = "finished" if len(record.history) >= self._epochs else "pruned"
        self._recorder.trial_updated(record)

    # Ray Tune saves its searcher now and then; a study resumes from its own files instead.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Does nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing."""


def _update(record: TrialRecord, result: Mapping[str, Any]) -> None:
    """Puts a report into the record, once."""
    if UPDATE not in result:
        return
    update = json.loads(result[UPDATE])
    entry = update["entry"]
    # Ray Tune repeats the last report at the end, and a restarted trial may repeat an epoch.
    if entry and entry["epoch"] == len(record.history) + 1:
        record.history.append(entry)
        record.objective = float(result[METRIC])
    record.usage, record.cache_reason = update["usage"], update["cache_reason"]
    if update["state"] in ("stopped", "failed"):
        record.state, record.reason = update["state"], update["reason"]
