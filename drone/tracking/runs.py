"""Runs in MLflow; only the process that launched a run or study writes to it."""

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

# Before mlflow is imported: a server that does not answer must not block for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "5")
# Else MLflow notes in a set which variables any thread reads while a model is logged, and fails
# if the thread that renews the run's lease reads one while the set is sorted.
os.environ["MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING"] = "false"

import mlflow
from mlflow import entities
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from drone.commands import command
from drone.data.dataset import Dataset
from drone.errors import RunError, TrackingError
from drone.names import check_name, storable
from drone.redaction import redact
from drone.tracking import deleted, sqlite_store
from drone.tracking.artifacts import IMAGE_COLUMNS, IMAGES_FILE
from drone.tracking.failures import FAILURES, first_line, is_refusal
from drone.tracking.lease import Lease, hold
from drone.training.best_epoch import History

Run: TypeAlias = entities.Run
"""A run as MLflow returns it: `info` and `data`."""

DEFAULT_EXPERIMENT = "drone"
_DEFAULT_STORE = "mlflow.db"

_RETRY_INTERVAL_S = 15.0
_CATCH_UP_INTERVAL_S = 2.0
_EPOCHS_PER_REQUEST = 30
"""A request holds at most 1,000 points."""


def connect(experiment: str = DEFAULT_EXPERIMENT) -> str:
    """Selects the tracking store and makes sure that it answers.

    MLFLOW_TRACKING_URI if set, else sqlite in the working folder. The artifacts of a sqlite store
    are in the folder mlartifacts beside it, wherever the two are moved.

    Returns:
        The store's URI.

    Raises:
        TrackingError: The store does not answer or cannot be used.
        ConfigError: The experiment has no valid name.
    """
    # alembic reports each of its migrations when it creates a database.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # MLflow logs a traceback for what it raises as well.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    check_name(experiment, "--experiment")
    default = sqlite_store.uri_of(Path(_DEFAULT_STORE).resolve())
    uri = os.environ.get("MLFLOW_TRACKING_URI") or default
    mlflow.set_tracking_uri(uri)
    file = sqlite_store.file_of(uri)
    try:
        with sqlite_store.opened(file) if file else contextlib.nullcontext():
            _open_experiment(experiment, file)
    # ValueError: the URI is none. ImportError: it names a database whose driver is not installed.
    except (*FAILURES, ValueError, ImportError) as error:
        advice = "Set MLFLOW_TRACKING_URI to another store."
        if os.environ.get("MLFLOW_TRACKING_URI"):
            advice = (
                f"Start it, correct MLFLOW_TRACKING_URI, or unset it to track in {_DEFAULT_STORE} "
                f"here."
            )
        raise TrackingError(
            f"The tracking server {uri} cannot be used: {first_line(error)}. {advice}"
        ) from error
    return uri


def store_folder() -> Path | None:
    """Returns the folder of the connected store; None if it is no file of this machine."""
    file = sqlite_store.file_of(mlflow.get_tracking_uri())
    return file.parent if file else None


def _open_experiment(experiment: str, store: Path | None) -> None:
    existing = MlflowClient().get_experiment_by_name(experiment)
    if existing is not None:
        deleted.check_experiment(existing)
    else:
        artifacts = (store.parent / sqlite_store.ARTIFACTS).as_uri() if store else None
        # Without its kind the UI takes a new experiment for one of language models.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        MlflowClient().create_experiment(experiment, artifact_location=artifacts, tags=tags)
    mlflow.set_experiment(experiment)


@dataclass
class TrackedRun:
    """A run that is being written; use `start_run` to get one."""

    run_id: str
    name: str
    warn: Callable[[str], None]
    _logged_epochs: set[int]
    _lease: Lease | None = None
    _retry_at: float = 0.0
    _pending: tuple[int, ...] = ()
    refusal: str = ""
    """Why the store refuses the epochs that are not logged; empty if it does not."""

    def check_lease(self) -> None:
        """Fails if another process has taken the run over.

        Raises:
            LockedError: It has; names it.
        """
        if self._lease is not None:
            self._lease.check()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Logs settings by dotted name."""
        # By id, not through the active run: trials' runs are written while their parent is active.
        entries = [Param(name, redact(str(value))) for name, value in params.items()]
        MlflowClient().log_batch(self.run_id, params=entries)

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Logs facts to filter runs by."""
        entries = [RunTag(name, redact(str(value))) for name, value in tags.items()]
        MlflowClient().log_batch(self.run_id, tags=entries)

    def log_dataset(self, dataset: Dataset) -> None:
        """Logs the data set as an input, named by its fingerprint, and the split of each image."""
        source = HTTPDatasetSource(dataset.folder.resolve().as_uri())
        # MLflow takes at most 36 characters.
        digest = dataset.fingerprint[:36]
        mlflow.log_input(
            MetaDataset(source, name=storable(dataset.folder.name), digest=digest),
            context="training",
        )
        kept = dataset.manifest["kept"]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / IMAGES_FILE
            dataset.manifest.loc[kept, IMAGE_COLUMNS].to_parquet(file, index=False)
            mlflow.log_artifact(str(file))

    def log_history(self, history: History) -> None:
        """Logs the epochs that are not in the store yet, each in one batch.

        A store that does not answer is retried later and never stops training.
        """
        self._pending = tuple(
            index
            for index, entry in enumerate(history)
            if entry["epoch"] not in self._logged_epochs
        )
        # Each attempt on a server that is away blocks for its time-out; not at every epoch and
        # poll.
        if time.monotonic() < self._retry_at:
            return
        try:
            self._log_epochs([history[index] for index in self._pending])
            if self._retry_at:
                self.warn("The tracking server is back; the missing epochs have been logged.")
            self._retry_at, self._pending, self.refusal = 0.0, (), ""
        except FAILURES as error:
            self.refusal = first_line(error) if is_refusal(error) else ""
            if not self._retry_at:
                self.warn(self._outage(error))
            self._retry_at = time.monotonic() + _RETRY_INTERVAL_S

    def _outage(self, error: Exception) -> str:
        """Returns what the user is told when epochs cannot be logged."""
        what = f"refuses the metrics of run {self.name}" if self.refusal else "does not answer"
        then = "they are sent again at the end" if self.refusal else "the log catches up"
        return f"The tracking server {what} ({first_line(error)}). Training continues; {then}."

    def _log_epochs(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Logs several epochs in one request, each completely or not at all."""
        for start in range(0, len(entries), _EPOCHS_PER_REQUEST):
            batch = entries[start : start + _EPOCHS_PER_REQUEST]
            # With the time of the epoch: MLflow stores a point once if all of it is the same, so a
            # resumed run or a retry makes no second one.
            metrics = [
                Metric(name, value, entry["time_ms"], entry["epoch"])
                for entry in batch
                for name, value in entry["metrics"].items()
            ]
            MlflowClient().log_batch(self.run_id, metrics=metrics)
            self._logged_epochs.update(entry["epoch"] for entry in batch)

    @property
    def is_behind(self) -> bool:
        """Whether epochs are waiting for the store to answer."""
        return bool(self._pending)

    def retry_now(self) -> None:
        """Retries the store at the next call, even if it failed just now."""
        self._retry_at = 0.0

    def log_final(self, metrics: Mapping[str, float]) -> None:
        """Logs metrics of the whole run; one that the store has already gets no second point."""
        now_ms = int(time.time() * 1000)
        logged = MlflowClient().get_run(self.run_id).data.metrics
        entries = [
            Metric(name, value, now_ms, 0)
            for name, value in metrics.items()
            if logged.get(name) != value
        ]
        MlflowClient().log_batch(self.run_id, metrics=entries)

    def log_text(self, text: str, target: str) -> None:
        """Logs a text file as artifact."""
        mlflow.log_text(text, target)

    def log_folder(self, folder: Path, target: str) -> None:
        """Logs a folder of files as artifacts."""
        mlflow.log_artifacts(str(folder), target)

    def catch_up(self, history: History, timeout_s: float = 60.0) -> None:
        """Logs what is still missing, retrying the store for a while.

        Raises:
            TrackingError: The store did not come back; the message says what is missing and how to
                log it later.
        """
        give_up_at = time.monotonic() + timeout_s
        while True:
            self.retry_now()
            self.log_history(history)
            if not self._pending:
                return
            # What is refused now is refused in a minute as well.
            if self.refusal or time.monotonic() >= give_up_at:
                epochs = ", ".join(str(history[index]["epoch"]) for index in self._pending)
                reason, fix = "is still away", "start the server"
                if self.refusal:
                    reason, fix = f"refuses to log ({self.refusal})", "correct that"
                raise TrackingError(
                    f"The tracking server {reason}; epochs {epochs} of run {self.name} are not "
                    f"logged, nor is its model. Nothing is lost: {fix}, then "
                    f"{command('train', resume=self.run_id)}"
                )
            time.sleep(_CATCH_UP_INTERVAL_S)


@contextlib.contextmanager
def start_run(
    name: str,
    warn: Callable[[str], None],
    resume_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[TrackedRun]:
    """Starts or resumes a run, which lasts as long as the block.

    It ends FINISHED, KILLED after an interruption, or FAILED after any other error. No other
    process can resume it meanwhile.

    Args:
        name: Name of a new run.
        warn: Called with a message when the store does not answer.
        resume_run_id: Id of the run to resume.
        tags: Tags of a new run.

    Raises:
        LockedError: Another process is writing the run.
        RunError: The store has no run of that id, or it was deleted, or it is of another
            experiment.
    """
    with contextlib.ExitStack() as stack:
        if resume_run_id is None:
            run = mlflow.start_run(run_name=name, tags=dict(tags or {}), log_system_metrics=True)
            lease = stack.enter_context(hold(run.info.run_id, is_new=True, notify=warn))
        else:
            run, lease = _resume(resume_run_id, warn, stack)
        yield stack.enter_context(_ending(run, lease, warn))


def _resume(
    run_id: str, warn: Callable[[str], None], stack: contextlib.ExitStack
) -> tuple[mlflow.ActiveRun, Lease]:
    try:
        # First: until this process holds the run, nothing of it may change.
        lease = stack.enter_context(hold(run_id, is_new=False, notify=warn))
        return mlflow.start_run(run_id=run_id, log_system_metrics=True), lease
    except MlflowException as error:
        raise RunError(
            f"Cannot resume run {run_id} in {mlflow.get_tracking_uri()}: {first_line(error)}. "
            f"{deleted.resume_advice(run_id)}"
        ) from error


@contextlib.contextmanager
def _ending(
    run: mlflow.ActiveRun, lease: Lease, warn: Callable[[str], None]
) -> Iterator[TrackedRun]:
    """Ends a run with the status that says how the block ended."""
    run_id, status = run.info.run_id, "FAILED"
    try:
        yield TrackedRun(run_id, run.info.run_name, warn, logged_epochs(run_id), lease)
        status = "FINISHED"
    except BaseException as error:
        interrupted = getattr(error, "exit_code", None) == 130
        if interrupted or isinstance(error, KeyboardInterrupt):
            status = "KILLED"
        raise
    finally:
        try:
            # A store that is away must not replace the error that ended the run. A run that has
            # been taken over is its new holder's to end.
            mlflow.end_run("RUNNING" if lease.is_lost else status)
        except FAILURES as error:
            warn(f"Run {run_id} could not be marked {status}: {first_line(error)}")


@contextlib.contextmanager
def reopen_run(run_id: str) -> Iterator[TrackedRun]:
    """Writes to a run that has ended, and leaves its status as it was."""
    info = MlflowClient().get_run(run_id).info
    # MLflow refuses to start a run of another experiment than the active one.
    mlflow.set_experiment(experiment_id=info.experiment_id)
    mlflow.start_run(run_id=run_id, log_system_metrics=False)
    try:
        yield TrackedRun(run_id, info.run_name, lambda _: None, set())
    finally:
        # A killed process leaves its run as RUNNING, and no other process would end it.
        mlflow.end_run(info.status if info.status != "RUNNING" else "FINISHED")


def logged_epochs(run_id: str) -> set[int]:
    """Returns the epochs whose metrics are in the store."""
    # An epoch is logged completely or not at all, so one metric stands for all.
    return {metric.step for metric in MlflowClient().get_metric_history(run_id, "train/loss")}


def find_run(id_or_name: str) -> Run:
    """Returns the run with an id, or the newest one with a name.

    Raises:
        RunError: There is no such run, or it was deleted.
    """
    client = MlflowClient()
    # No run has such a name, and some databases cannot even be asked for it.
    if id_or_name.isprintable():
        run = _run_of_id(id_or_name) or find_by_name(id_or_name)
        run = run or find_by_name(id_or_name, ViewType.DELETED_ONLY)
        if run is not None:
            deleted.check_run(run)
            return run
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    newest = client.search_runs(experiments, max_results=5, order_by=["attributes.start_time DESC"])
    names = ", ".join(run.info.run_name or run.info.run_id for run in newest) or "none yet"
    raise RunError(
        f"There is no run {id_or_name!r} in {mlflow.get_tracking_uri()}. The newest are: {names}."
    )


def _run_of_id(run_id: str) -> Run | None:
    try:
        # A name is no valid id, which MLflow reports as an error.
        return MlflowClient().get_run(run_id)
    except MlflowException:
        return None


def find_by_name(name: str, view: int = ViewType.ACTIVE_ONLY) -> Run | None:
    """Returns the newest run with a name, or None; by default of those that were not deleted."""
    client = MlflowClient()
    # Deleted ones too: with an experiment, its runs are deleted.
    experiments = client.search_experiments(view_type=ViewType.ALL)
    escaped = name.replace("'", "''")
    runs = client.search_runs(
        [experiment.experiment_id for experiment in experiments],
        f"attributes.run_name = '{escaped}'",
        run_view_type=view,
        order_by=["attributes.start_time DESC"],
    )
    return runs[0] if runs else None
