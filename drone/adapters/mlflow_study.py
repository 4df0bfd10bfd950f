"""A study in MLflow: a parent run, and a child for each trial. One process writes them all."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from mlflow.tracking import MlflowClient

from drone.adapters.mlflow_tracking import FAILURES, TrackedRun, logged_epochs, reason_of
from drone.errors import TrackingError
from drone.search.study import TrialRecord

_PARENT, _PART, _NUMBER = "mlflow.parentRunId", "study.part", "study.trial"
_FLUSH_S = 3.0
_STATUS = {"finished": "FINISHED", "pruned": "FINISHED", "ended": "FAILED", "failed": "FAILED"}


class Children:
    """The trials' runs. A store that does not answer is asked again later, and holds nobody up."""

    def __init__(self, parent_run_id: str, warn: Callable[[str], None]) -> None:
        """Finds the children that an earlier attempt made.

        Args:
            parent_run_id: the study's run.
            warn: tells a person that the store does not answer.
        """
        self._client, self._parent, self._warn = MlflowClient(), parent_run_id, warn
        self._experiment = self._client.get_run(parent_run_id).info.experiment_id
        self._runs: dict[tuple[str, int], TrackedRun] = {}
        self._described: set[tuple[str, int]] = set()
        self._over: set[tuple[str, int]] = set()
        self._behind: dict[tuple[str, int], TrialRecord] = {}
        self._flushed: dict[tuple[str, int], float] = {}
        self._find()

    def _find(self) -> None:
        token = None
        while True:
            found = self._client.search_runs(
                [self._experiment],
                f"tags.`{_PARENT}` = '{self._parent}'",
                max_results=1000,
                page_token=token,
            )
            for run in found:
                key = run.data.tags[_PART], int(run.data.tags[_NUMBER])
                if run.info.status in ("RUNNING", "KILLED"):
                    self._client.update_run(run.info.run_id, status="RUNNING")
                    logged = logged_epochs(run.info.run_id)
                    self._runs[key] = self._handle(run.info.run_id, run.info.run_name, logged)
                else:
                    self._over.add(key)
            token = found.token
            if not token:
                return

    def _handle(self, run_id: str, name: str, logged: set[int]) -> TrackedRun:
        return TrackedRun(run_id, name, self._warn, logged)

    def begin(
        self,
        part: str,
        record: TrialRecord,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> None:
        """Makes a trial's run, unless it is there, and logs its settings, unless this one did."""
        key = part, record.number
        if key in self._described or key in self._over:
            return
        try:
            if key not in self._runs:
                made = self._client.create_run(
                    self._experiment,
                    run_name=name,
                    tags={
                        **tags,
                        _PARENT: self._parent,
                        _PART: part,
                        _NUMBER: str(record.number),
                        "state": "running",
                    },
                )
                self._runs[key] = self._handle(made.info.run_id, name, set())
            # Also of a run that is there: an earlier attempt may have been killed before it did.
            self._runs[key].log_params(params)
            self._described.add(key)
        except FAILURES as error:
            self._behind[key] = record
            self._warn(
                f"Trial {record.number} is not in MLflow yet ({reason_of(error)}). The search "
                f"goes on; the log catches up."
            )

    def update(self, part: str, record: TrialRecord) -> None:
        """Logs the epochs that are new; every few seconds, or all when the trial is over."""
        key = part, record.number
        run = self._runs.get(key)
        if run is None:
            return
        now = time.monotonic()
        if record.is_over or now - self._flushed.get(key, 0.0) >= _FLUSH_S:
            self._flushed[key] = now
            run.log_history(record.history)
        if record.is_over:
            self._end(key, run, record)

    def _end(self, key: tuple[str, int], run: TrackedRun, record: TrialRecord) -> None:
        if run.is_behind or key not in self._described:
            self._behind[key] = record
            return
        try:
            tags = {"state": record.state, "reason": record.reason, "reuse": record.reuse}
            run.log_tags(tags)
            run.log_values({"objective": record.objective, **record.usage})
            self._client.set_terminated(run.run_id, _STATUS[record.state])
        except FAILURES as error:
            self._behind[key] = record
            self._warn(f"Trial {record.number} could not be ended in MLflow: {reason_of(error)}")
            return
        del self._runs[key]
        self._over.add(key)
        self._behind.pop(key, None)

    def catch_up(
        self, begin_again: Callable[[str, TrialRecord], None], patience_s: float = 60.0
    ) -> None:
        """Logs what is missing, waiting for the store a while.

        Args:
            begin_again: calls `begin` for a trial that has no run.
            patience_s: how long to wait.

        Raises:
            TrackingError: the store did not come back.
        """
        give_up_at = time.monotonic() + patience_s
        while self._behind:
            for (part, _), record in list(self._behind.items()):
                begin_again(part, record)
                run = self._runs.get((part, record.number))
                if run is not None:
                    run.retry_now()
                    self.update(part, record)
            if self._behind and time.monotonic() >= give_up_at:
                raise TrackingError(
                    f"The tracking server is away; {len(self._behind)} trials are not logged. "
                    f"Nothing is lost: start it, then tune.py --resume the study."
                )
            if self._behind:
                time.sleep(2)

    def abandon(self) -> None:
        """Marks what still runs as killed; a resumed study takes it up again."""
        for run in self._runs.values():
            try:
                self._client.set_terminated(run.run_id, "KILLED")
            except FAILURES as error:
                self._warn(f"Run {run.name} could not be marked KILLED: {reason_of(error)}")
