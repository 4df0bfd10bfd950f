"""A study in MLflow: a parent run, and a child run per trial. One process writes them all."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from mlflow.tracking import MlflowClient

from drone.errors import TrackingError
from drone.search.study import Part, TrialRecord, mean_history
from drone.tracking.failures import FAILURES, first_line, is_refusal
from drone.tracking.runs import TrackedRun, logged_epochs
from drone.training.best_epoch import History

_PARENT, _PART, _NUMBER = "mlflow.parentRunId", "study.part", "study.trial"
# With cached activations an epoch can take less than a second: no request for each.
_FLUSH_INTERVAL_S = 3.0
_RETRY_INTERVAL_S = 2.0
# A pruned trial has ended as intended: the UI shows FAILED as broken.
_STATUS = {"finished": "FINISHED", "pruned": "FINISHED", "stopped": "FAILED", "failed": "FAILED"}

_Key = tuple[Part, int]
"""Part and number of a trial."""


class TrialRuns:
    """The trials' runs. A store that does not answer is retried later, and blocks nothing."""

    def __init__(self, parent_run_id: str, warn: Callable[[str], None]) -> None:
        """Finds the runs that an earlier attempt created.

        Args:
            parent_run_id: The study's run.
            warn: Called with a message when the store does not answer.
        """
        self._client, self._parent, self._warn = MlflowClient(), parent_run_id, warn
        self._experiment = self._client.get_run(parent_run_id).info.experiment_id
        self._runs: dict[_Key, TrackedRun] = {}
        self._described: set[_Key] = set()
        self._ended: set[_Key] = set()
        self._behind: dict[_Key, TrialRecord] = {}
        self._refusals: dict[_Key, str] = {}
        self._flushed_at: dict[_Key, float] = {}
        self._find_existing()

    def _find_existing(self) -> None:
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment],
                f"tags.`{_PARENT}` = '{self._parent}'",
                max_results=1000,
                page_token=token,
            )
            for run in page:
                key: _Key = run.data.tags[_PART], int(run.data.tags[_NUMBER])
                # RUNNING after a kill, KILLED after Ctrl-C: such runs are resumed.
                if run.info.status not in ("RUNNING", "KILLED"):
                    self._ended.add(key)
                    continue
                run_id = run.info.run_id
                self._client.update_run(run_id, status="RUNNING")
                epochs = logged_epochs(run_id)
                self._runs[key] = TrackedRun(run_id, run.info.run_name, self._warn, epochs)
            token = page.token
            if not token:
                return

    def start(
        self,
        part: Part,
        record: TrialRecord,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> None:
        """Creates a trial's run and logs its settings, unless that has been done."""
        key = part, record.number
        if key in self._described or key in self._ended:
            return
        try:
            if key not in self._runs:
                all_tags = {
                    **tags,
                    _PARENT: self._parent,
                    _PART: part,
                    _NUMBER: str(record.number),
                    "state": "running",
                }
                run = self._client.create_run(self._experiment, run_name=name, tags=all_tags)
                self._runs[key] = TrackedRun(run.info.run_id, name, self._warn, set())
            # For a run that exists too: an earlier attempt may have been killed before this.
            self._runs[key].log_params(params)
            self._described.add(key)
        except FAILURES as error:
            self._postpone(key, record, "is not in MLflow yet", error)

    def _postpone(self, key: _Key, record: TrialRecord, state: str, error: Exception) -> None:
        """Notes that a trial could not be logged, and tells the user why."""
        reason = first_line(error)
        self._behind[key] = record
        self._refusals[key] = reason if is_refusal(error) else ""
        why = f"the tracking server refuses it: {reason}" if is_refusal(error) else reason
        self._warn(
            f"Trial {record.number} {state} ({why}). The search continues; the log catches up."
        )

    def update(self, part: Part, record: TrialRecord) -> None:
        """Logs the new epochs: every few seconds, or all when the trial has ended."""
        key = part, record.number
        run = self._runs.get(key)
        if run is None:
            return
        now = time.monotonic()
        if record.has_ended or now - self._flushed_at.get(key, 0.0) >= _FLUSH_INTERVAL_S:
            self._flushed_at[key] = now
            run.log_history(_epochs(record))
        if record.has_ended:
            self._end(key, run, record)

    def _end(self, key: _Key, run: TrackedRun, record: TrialRecord) -> None:
        # A run that has ended is not written again, so all of its epochs come first.
        if run.is_behind or key not in self._described:
            self._behind[key] = record
            return
        try:
            run.log_tags(
                {
                    "state": record.state,
                    "reason": record.reason,
                    "pruned_by": "" if record.pruned_by is None else str(record.pruned_by),
                    "cache": record.cache_reason,
                }
            )
            run.log_final(_final_metrics(record))
            self._client.set_terminated(run.run_id, _STATUS[record.state])
        except FAILURES as error:
            self._postpone(key, record, "could not be ended in MLflow", error)
            return
        del self._runs[key]
        self._ended.add(key)
        self._behind.pop(key, None)

    def catch_up(
        self,
        start_again: Callable[[Part, TrialRecord], None],
        resume: str,
        timeout_s: float = 60.0,
    ) -> None:
        """Logs what is missing, retrying the store for a while.

        Args:
            start_again: Calls `start` for a trial that has no run.
            resume: Command that resumes the study, for the error.
            timeout_s: Seconds to retry for.

        Raises:
            TrackingError: The store did not come back.
        """
        give_up_at = time.monotonic() + timeout_s
        while self._behind:
            # A copy: what succeeds is removed meanwhile.
            for (part, number), record in list(self._behind.items()):
                start_again(part, record)
                run = self._runs.get((part, number))
                if run is not None:
                    run.retry_now()
                    self.update(part, record)
            refusals = [reason for key in self._behind if (reason := self._refusal(key))]
            # What is refused now is refused in a minute as well.
            if self._behind and (refusals or time.monotonic() >= give_up_at):
                reason, fix = "is away", "start it"
                if refusals:
                    reason, fix = f"refuses to log ({refusals[0]})", "correct that"
                raise TrackingError(
                    f"The tracking server {reason}; {len(self._behind)} trials are not logged. "
                    f"Nothing is lost: {fix}, then {resume}"
                )
            if self._behind:
                time.sleep(_RETRY_INTERVAL_S)

    def _refusal(self, key: _Key) -> str:
        """Returns why the store refuses a trial; empty if it does not."""
        run = self._runs.get(key)
        return self._refusals.get(key, "") or (run.refusal if run else "")

    def mark_killed(self) -> None:
        """Marks the running trials as killed; a resumed study continues them."""
        for run in self._runs.values():
            try:
                self._client.set_terminated(run.run_id, "KILLED")
            except FAILURES as error:
                self._warn(f"Run {run.name} could not be marked KILLED: {first_line(error)}")


def _epochs(record: TrialRecord) -> History:
    """Returns the epochs that can be logged: with folds their means, which the last one decides."""
    if record.num_folds == 1:
        return record.history
    return mean_history(record.history) if record.has_ended else []


def _final_metrics(record: TrialRecord) -> dict[str, float]:
    if record.score is None or record.score_se is None:
        return record.usage
    scores = {"score": record.score, "score_se": record.score_se}
    return {**scores, **record.metrics, **record.usage}
