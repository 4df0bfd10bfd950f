"""Runs in MLflow: the one place of a run or study that writes to it."""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before mlflow is imported: a server that does not answer must not hold anyone up for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "5")

import mlflow
import pandas as pd
import requests
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from drone.data.dataset import Dataset
from drone.errors import RunError, TrackingError
from drone.training.context import History

EXPERIMENT = "drone"
DEFAULT_STORE = "mlflow.db"
DEFAULT_ARTIFACTS = "mlartifacts"

PICTURES_FILE = "pictures.parquet"
"""Artifact of a run: which picture was in which split."""

_RETRY_S = 15.0
_EPOCHS_AT_ONCE = 30
"""A request takes at most 1,000 points."""

FAILURES = (MlflowException, requests.RequestException, OSError)
"""What a store that is away or refuses raises."""


def connect(experiment: str = EXPERIMENT) -> str:
    """Chooses the tracking store and makes sure that it answers.

    MLFLOW_TRACKING_URI if set, else sqlite beside the working folder's mlartifacts/.

    Returns:
        The store's URI.

    Raises:
        TrackingError: it does not answer or cannot be used.
    """
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(DEFAULT_STORE).resolve()}"
    mlflow.set_tracking_uri(uri)
    try:
        if MlflowClient().get_experiment_by_name(experiment) is None:
            local = uri.startswith("sqlite:")
            place = Path(DEFAULT_ARTIFACTS).resolve().as_uri() if local else None
            # Without its kind the UI takes a new experiment for one of language models.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            MlflowClient().create_experiment(experiment, artifact_location=place, tags=tags)
        mlflow.set_experiment(experiment)
    except FAILURES as error:
        raise TrackingError(
            f"The tracking server {uri} cannot be used: {reason_of(error)}. Start it, or correct "
            f"MLFLOW_TRACKING_URI, or unset it to track in {DEFAULT_STORE} here."
        ) from error
    return uri


def reason_of(error: Exception) -> str:
    """The first line of what a store's failure says."""
    text = str(error).strip().splitlines()
    return text[0].removesuffix(".")[:300] if text else type(error).__name__


@dataclass
class TrackedRun:
    """A run that is being written; use `tracked` to get one."""

    run_id: str
    name: str
    warn: Callable[[str], None]
    _logged: set[int]
    _retry_at: float = 0.0
    _pending: tuple[int, ...] = ()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Settings, flat, once."""
        entries = [Param(name, str(value)) for name, value in params.items()]
        MlflowClient().log_batch(self.run_id, params=entries)

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Facts to filter runs by."""
        entries = [RunTag(name, str(value)) for name, value in tags.items()]
        MlflowClient().log_batch(self.run_id, tags=entries)

    def log_dataset(self, dataset: Dataset) -> None:
        """The data set as an input, named by its fingerprint, and each picture's split."""
        source = HTTPDatasetSource(dataset.folder.resolve().as_uri())
        described = MetaDataset(source, name=dataset.folder.name, digest=dataset.fingerprint[:36])
        mlflow.log_input(described, context="training")
        kept = dataset.manifest.loc[
            dataset.manifest["kept"], ["md5", "phash", "class_name", "split", "group", "path"]
        ]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / PICTURES_FILE
            kept.to_parquet(file, index=False)
            mlflow.log_artifact(str(file))

    def log_history(self, history: History) -> None:
        """Epochs that are not in the store yet, each in one batch.

        A store that does not answer is asked again later and never stops training.
        """
        self._pending = tuple(
            number for number, entry in enumerate(history) if entry["epoch"] not in self._logged
        )
        if time.monotonic() < self._retry_at:
            return
        try:
            self._log_epochs([history[number] for number in self._pending])
            if self._retry_at:
                self.warn("The tracking server is back; what was missing has been logged.")
            self._retry_at, self._pending = 0.0, ()
        except FAILURES as error:
            if not self._retry_at:
                self.warn(
                    f"The tracking server does not answer ({reason_of(error)}). Training goes on; "
                    f"the log catches up when it is back."
                )
            self._retry_at = time.monotonic() + _RETRY_S

    def _log_epochs(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Several epochs in one request, each whole or not at all."""
        while entries:
            now, entries = entries[:_EPOCHS_AT_ONCE], entries[_EPOCHS_AT_ONCE:]
            metrics = [
                Metric(name, value, entry["time_ms"], entry["epoch"])
                for entry in now
                for name, value in entry["metrics"].items()
            ]
            MlflowClient().log_batch(self.run_id, metrics=metrics)
            self._logged.update(entry["epoch"] for entry in now)

    @property
    def is_behind(self) -> bool:
        """Whether epochs are waiting for the store to answer."""
        return bool(self._pending)

    def retry_now(self) -> None:
        """Asks the store the next time, even if it failed just now."""
        self._retry_at = 0.0

    def log_values(self, metrics: Mapping[str, float]) -> None:
        """Figures of the whole run, of this run whichever is active; see `log_summary`."""
        now = int(time.time() * 1000)
        entries = [Metric(name, value, now, 0) for name, value in self._news(metrics).items()]
        MlflowClient().log_batch(self.run_id, metrics=entries)

    def log_summary(self, metrics: Mapping[str, float]) -> None:
        """Figures of the whole run; one that the store has already gets no second point."""
        mlflow.log_metrics(self._news(metrics))

    def _news(self, metrics: Mapping[str, float]) -> dict[str, float]:
        known = MlflowClient().get_run(self.run_id).data.metrics
        return {name: value for name, value in metrics.items() if known.get(name) != value}

    def log_text(self, text: str, target: str) -> None:
        """A text file as artifact."""
        mlflow.log_text(text, target)

    def log_folder(self, folder: Path, target: str) -> None:
        """A folder of files as artifacts."""
        mlflow.log_artifacts(str(folder), target)

    def catch_up(self, history: History, patience_s: float = 60.0) -> None:
        """Logs what is still missing, waiting for the store a while.

        Raises:
            TrackingError: it did not come back; says what is missing and how to log it later.
        """
        give_up_at = time.monotonic() + patience_s
        while True:
            self._retry_at = 0.0
            self.log_history(history)
            if not self._pending:
                return
            if time.monotonic() >= give_up_at:
                epochs = ", ".join(str(history[number]["epoch"]) for number in self._pending)
                raise TrackingError(
                    f"The tracking server is still away; epochs {epochs} of run {self.name} are "
                    f"not logged, nor is its model. Nothing is lost: start the server, then "
                    f"python ray_jobs/train.py --resume {self.run_id}"
                )
            time.sleep(2)


@contextmanager
def tracked(
    name: str,
    warn: Callable[[str], None],
    run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[TrackedRun]:
    """A new run, or one that goes on, for as long as the block runs.

    It ends FINISHED, KILLED after an interruption, or FAILED after any other error.

    Args:
        name: of a new run.
        warn: tells a person that the store does not answer.
        run_id: of the run that goes on.
        tags: of a new run.

    Raises:
        RunError: the store has no run of that id, or not in the chosen experiment.
    """
    try:
        run = mlflow.start_run(
            run_id=run_id,
            run_name=None if run_id else name,
            tags=None if run_id else dict(tags or {}),
            log_system_metrics=True,
        )
    except MlflowException as error:
        if run_id is None:
            raise
        raise RunError(
            f"{mlflow.get_tracking_uri()} cannot go on with run {run_id}: {reason_of(error)}. "
            f"Resume in the folder that it was begun in, or name its store with "
            f"MLFLOW_TRACKING_URI and its experiment with --experiment."
        ) from error
    status = "FAILED"
    try:
        yield TrackedRun(run.info.run_id, run.info.run_name, warn, logged_epochs(run.info.run_id))
        status = "FINISHED"
    except BaseException as error:
        status = "KILLED" if getattr(error, "exit_code", None) == 130 else status
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else status
        raise
    finally:
        _end(run.info.run_id, status, warn)


def _end(run_id: str, status: str, warn: Callable[[str], None]) -> None:
    try:
        mlflow.end_run(status)
    except FAILURES as error:
        warn(f"Run {run_id} could not be marked {status}: {reason_of(error)}")


def logged_epochs(run_id: str) -> set[int]:
    """Epochs that are in the store."""
    return {metric.step for metric in MlflowClient().get_metric_history(run_id, "train/loss")}


def find_run(wanted: str) -> Run:
    """The run of an id, or the newest one of a name.

    Raises:
        RunError: there is none.
    """
    client = MlflowClient()
    try:
        return client.get_run(wanted)
    except MlflowException:
        pass
    named = find_named(wanted)
    if named is not None:
        return named
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    newest = client.search_runs(experiments, max_results=5, order_by=["attributes.start_time DESC"])
    names = ", ".join(run.info.run_name or run.info.run_id for run in newest) or "none yet"
    raise RunError(
        f"There is no run {wanted!r} in {mlflow.get_tracking_uri()}. The newest are: {names}."
    )


def find_named(name: str) -> Run | None:
    """The newest run of a name, or None."""
    client = MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    escaped = name.replace("'", "''")
    found = client.search_runs(
        experiments, f"attributes.run_name = '{escaped}'", order_by=["attributes.start_time DESC"]
    )
    return found[0] if found else None


def download(run_id: str, artifact: str, target: Path) -> Path:
    """Fetches a file or folder of a run's artifacts.

    Raises:
        RunError: the run has none of that name.
    """
    try:
        return Path(
            mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=artifact, dst_path=str(target)
            )
        )
    except FAILURES as error:
        raise RunError(f"Run {run_id} has no {artifact}: {reason_of(error)}") from error


def pictures_of(run_id: str) -> pd.DataFrame:
    """The pictures that a run's data set kept: md5, phash, class, split, group and path.

    Raises:
        RunError: the run has no list of them.
    """
    with tempfile.TemporaryDirectory() as temporary:
        return pd.read_parquet(download(run_id, PICTURES_FILE, Path(temporary)))


def learnt_from(run_id: str) -> "pd.Series[str]":
    """The md5 of each picture that a run was trained or chosen on.

    Raises:
        RunError: the run has no list of its pictures.
    """
    pictures = pictures_of(run_id)
    return pictures.loc[pictures["split"] != "test", "md5"]


def history(run_id: str) -> pd.DataFrame:
    """A run's metrics by epoch: a row an epoch, a column a metric; empty if there are none."""
    client = MlflowClient()
    names = [
        name
        for name in client.get_run(run_id).data.metrics
        if name.startswith(("train/", "validation/", "lr/", "speed/"))
    ]
    columns = {
        name: pd.Series(
            {point.step: point.value for point in client.get_metric_history(run_id, name)}
        )
        for name in sorted(names)
    }
    return pd.DataFrame(columns).sort_index().rename_axis("epoch")


@contextmanager
def reopened(run_id: str) -> Iterator[TrackedRun]:
    """Writes to a run that has ended, and leaves its status as it was."""
    info = MlflowClient().get_run(run_id).info
    mlflow.start_run(run_id=run_id, log_system_metrics=False)
    try:
        yield TrackedRun(run_id, info.run_name, lambda _: None, set())
    finally:
        mlflow.end_run(info.status if info.status != "RUNNING" else "FINISHED")
