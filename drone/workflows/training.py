"""Trains a run, from its first entry in MLflow to its logged model, over all its attempts."""

import datetime
import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from drone.cluster import connection
from drone.cluster import train as ray_train
from drone.cluster.train_job import TrainJob
from drone.commands import command
from drone.config import flatten, override, to_dict
from drone.data.dataset import Dataset
from drone.errors import ConfigError, Interrupted, ResumableError, RunError
from drone.model import mobilenet, weights
from drone.model.weights import Weights
from drone.names import check_name
from drone.project import commit
from drone.settings_file import read_yaml
from drone.storage import checkpoints, dataset_cache
from drone.storage.filesystem import absolute, read_text, resolve_writable
from drone.tracking import runs
from drone.tracking.runs import TrackedRun
from drone.training import class_weights as weighting
from drone.training import memory
from drone.training.activation_cache.policy import CacheDecision, CacheWorkload
from drone.training.activation_cache.store import CacheSpec
from drone.training.best_epoch import History
from drone.training.checkpoint import STATE_FILE, Position, read_position
from drone.training.config import ClassWeights, TrainConfig
from drone.training.data import TrainingData
from drone.workflows import cluster_check, earlier_run, model_card, model_logging, moved
from drone.workflows.display import SILENT, Display, TrainingProgress
from drone.workflows.run_spec import SPEC_FILE, RunSpec, check_fingerprint, read_spec, train_command


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources of a run; None uses what is available."""

    num_workers: int | None = None
    min_workers: int | None = None
    gpus_per_worker: float | None = None
    max_failures: int = 3
    """Maximum number of times that lost workers are replaced."""

    cache: CacheSpec = field(default_factory=CacheSpec)
    """Activation cache on each machine."""

    check_cluster: bool = True
    """Whether every machine of a cluster is checked first."""


@dataclass(frozen=True)
class TrainResult:
    """A completed run."""

    run_id: str
    run_name: str
    model_uri: str
    best: dict[str, float]
    """Validation "epoch", "macro_f1" and "loss" of the best epoch."""


def train(
    spec: RunSpec,
    resources: Resources = Resources(),
    *,
    name: str | None = None,
    class_weights: str | None = None,
    experiment: str = runs.DEFAULT_EXPERIMENT,
    display: Display = SILENT,
) -> TrainResult:
    """Trains a new run.

    Args:
        spec: What the run computes; its storage gets a folder per run.
        resources: What the run may use.
        name: Name of the run; by default preset and seed.
        class_weights: "none", "balanced" or a YAML file of weights by class, instead of those of
            the config.
        experiment: Experiment in MLflow.
        display: Shows the run.

    Raises:
        DroneError: Anything that the user can fix.
    """
    name = f"{spec.config.preset}-s{spec.config.seed}" if name is None else name
    check_name(name, "--name")
    store = runs.connect(experiment)
    # Before anything starts: a run that cannot store checkpoints is wasted.
    spec = replace(spec, storage=resolve_writable(spec.storage))
    at_bins = spec.config.model.mixed
    dataset = dataset_cache.open_at(spec.data, notify=display.show, at_bins=at_bins)
    if class_weights is not None:
        spec = replace(spec, config=_with_class_weights(spec.config, class_weights, dataset))
    if spec.from_run:
        spec = replace(spec, from_run=runs.find_run(spec.from_run).info.run_id)
    starting = _load_weights(spec, dataset, display)
    with runs.start_run(name, display.warn) as run:
        display.show(f"Run {run.name} ({run.run_id}) in {store}")
        # By id: run names repeat.
        spec = replace(spec, storage=f"{spec.storage}/{run.run_id}")
        display.show(_log_spec(run, spec, dataset, starting))
        if advice := _class_weights_advice(spec, dataset):
            display.warn(advice)
        return _train(run, store, spec, dataset, starting, resources, display)


def resume(
    id_or_name: str,
    resources: Resources = Resources(),
    *,
    data: str | None = None,
    experiment: str = runs.DEFAULT_EXPERIMENT,
    display: Display = SILENT,
) -> TrainResult:
    """Resumes a run that was stopped, with its own settings, data set and weights.

    Args:
        id_or_name: Id or name of the run.
        resources: What the run may use.
        data: Where its data set is now, if it has moved.
        experiment: Experiment in MLflow.
        display: Shows the run.

    Raises:
        RunError: There is no such run, or it is finished.
        DroneError: Anything else that the user can fix.
    """
    store = runs.connect(experiment)
    run = runs.find_run(id_or_name)
    info = run.info
    spec = read_spec(info.run_id)
    if info.status == "FINISHED":
        more, count = train_command(spec, epochs=2 * spec.config.epochs), spec.config.last_epoch
        raise RunError(
            f"Cannot resume run {id_or_name}: it is finished after {count} epochs. Start a new run "
            f"with more: {more}"
        )
    if data is not None:
        spec = replace(spec, data=absolute(data))
    _check_checkpoints(spec, info.run_id)
    dataset = moved.open_recorded(
        spec.data,
        f"run {info.run_name}",
        command("train", resume=info.run_id, data="DATASET"),
        display.show,
        at_bins=spec.config.model.mixed,
    )
    fingerprint = run.data.tags.get("fingerprint", "")
    if data is None:
        check_fingerprint(f"Run {info.run_name}", fingerprint, spec, dataset)
    elif dataset.fingerprint != fingerprint:
        raise ConfigError(
            f"Cannot resume run {info.run_name} with --data {data}: it was started on the data set "
            f"{fingerprint[:12]}, and this is {dataset.fingerprint[:12]}. Give the data set that "
            f"it was started on."
        )
    starting = _load_weights(spec, dataset, display)
    with runs.start_run(info.run_name, display.warn, info.run_id) as tracked:
        display.show(f"Run {tracked.name} ({tracked.run_id}) in {store}")
        # With the places where everything is now.
        tracked.log_text(spec.to_json(), SPEC_FILE)
        return _train(tracked, store, spec, dataset, starting, resources, display)


def _check_checkpoints(spec: RunSpec, run_id: str) -> None:
    """Fails if the checkpoints of a run are gone: it would start anew, and log epochs twice."""
    if "://" in spec.storage or Path(spec.storage).exists() or not runs.logged_epochs(run_id):
        return
    raise RunError(
        f"Cannot resume run {run_id}: its checkpoints belong in {spec.storage}, and there is no "
        f"such folder. Copy them there, or start a new run."
    )


def _with_class_weights(config: TrainConfig, given: str, dataset: Dataset) -> TrainConfig:
    """Returns the config with the class weights that --class-weights names."""
    if given in get_args(ClassWeights):
        optim = override(
            config.optim, {"class_weights": given, "class_weight_values": ()}, "--class-weights"
        )
    else:
        table = read_yaml(Path(given))
        optim = weighting.with_values(config.optim, table, dataset.classes, given)
    return replace(config, optim=optim)


def _load_weights(spec: RunSpec, dataset: Dataset, display: Display) -> Weights:
    if spec.from_run:
        return earlier_run.starting_weights(spec, dataset, display)
    starting = weights.load(spec.weights)
    if starting.pretrained == "none":
        display.warn(
            "Starting from random weights: expect far lower scores than with ImageNet weights. "
            "The run is tagged pretrained=none."
        )
    return starting


def _log_spec(run: TrackedRun, spec: RunSpec, dataset: Dataset, starting: Weights) -> str:
    """Logs everything that decides a new run before it starts; returns a line for the user."""
    config = spec.config
    # Built here for its counts, and to fail early if the weights do not fit.
    model = mobilenet.build(config.model, len(dataset.classes), config.seed, starting.state())
    counts = model.parameter_counts()
    counts_K = _training_counts(spec, dataset)
    weights_text = weighting.describe(config.optim, counts_K, dataset.classes)
    run.log_params(flatten(to_dict(config)))
    run.log_params({"parameters": counts.total, "parameters_trainable": counts.trainable})
    run.log_tags(
        {
            "preset": config.preset,
            "train_on": config.train_on,
            "pretrained": starting.pretrained,
            "weights_sha256": starting.sha256,
            "fingerprint": dataset.fingerprint,
            "commit": commit(),
            "classes": json.dumps(dataset.classes.names, ensure_ascii=False),
            "class_weights": weights_text,
            **({earlier_run.FROM_RUN_TAG: spec.from_run} if spec.from_run else {}),
        }
    )
    run.log_dataset(dataset)
    run.log_text(json.dumps(model_card.count_licences(dataset)), model_card.LICENCES_FILE)
    # Last: a run that has this file has all that it takes to be resumed.
    run.log_text(spec.to_json(), SPEC_FILE)
    return (
        f"{counts.total:,} parameters, {counts.trainable:,} of them trainable; "
        f"data set {dataset.fingerprint[:12]}; class weights {weights_text}"
    )


def _training_counts(spec: RunSpec, dataset: Dataset) -> NDArray[np.int64]:
    """Returns the number of training images of each class, (K,)."""
    return TrainingData.of(dataset, None, spec.config.train_on).train.counts_K


def _class_weights_advice(spec: RunSpec, dataset: Dataset) -> str | None:
    counts_K = _training_counts(spec, dataset)
    return weighting.advice(spec.config.optim, counts_K, dataset.classes)


def _train(
    run: TrackedRun,
    store: str,
    spec: RunSpec,
    dataset: Dataset,
    starting: Weights,
    resources: Resources,
    display: Display,
) -> TrainResult:
    """Trains what is left of a run, then logs what is left to log."""
    config = spec.config
    shown = display.training(config.last_epoch, _stored_history(spec.storage), config.best_epoch_by)
    # Before the workers start: set later, they would not reach the thread that trains.
    with connection.connected(environment=memory.ENVIRONMENT), shown as progress:
        if resources.check_cluster:
            cluster_check.before_job(
                store, spec.storage, spec.data, dataset, starting, resources.cache.folder, display
            )
        _fit(run, spec, dataset.fingerprint, starting, resources, progress, display)
    return _finish(run, spec, dataset, display)


def _fit(
    run: TrackedRun,
    spec: RunSpec,
    fingerprint: str,
    starting: Weights,
    resources: Resources,
    progress: TrainingProgress,
    display: Display,
) -> None:
    """Runs the remaining epochs on Ray Train; Ray must be connected."""
    storage = connection.writable_uri(spec.storage)
    if storage != spec.storage:
        display.show(
            f"Other machines do not share {spec.storage}: checkpoints arrive over the network."
        )
    stored = checkpoints.newest(storage, display.warn)
    if stored is not None:
        display.show(f"Resuming from epoch {stored.epoch}, step {stored.batch}")
        # Killed after its last epoch: only its model is missing.
        if stored.epoch >= spec.config.last_epoch:
            return
    workers = ray_train.choose_workers(
        resources.num_workers, resources.gpus_per_worker, resources.min_workers
    )
    if message := ray_train.waiting_message(workers):
        display.show(message)
    # Tags: a resumed run may have other resources, and MLflow's params cannot change.
    run.log_tags({"num_workers": workers.num_workers, "gpus_per_worker": workers.gpus_per_worker})
    job = TrainJob(
        config=spec.config,
        data=connection.readable_uri(absolute(spec.data)),
        fingerprint=fingerprint,
        workers=workers,
        storage=storage,
        # A new name: Ray Train would return the old result of a finished attempt.
        attempt=f"attempt_{datetime.datetime.now():%Y%m%d_%H%M%S}",
        resume_from=stored.location if stored else None,
        max_failures=resources.max_failures,
        commit=commit(),
        cache=resources.cache,
        workload=CacheWorkload(),
    )
    try:
        ray_train.train(job, starting, _listener(run, progress, display))
    except (Interrupted, ResumableError) as error:
        resume = command("train", resume=run.run_id)
        raise type(error)(f"{error} Continue: {resume}") from error


def _listener(run: TrackedRun, progress: TrainingProgress, display: Display) -> ray_train.Listener:
    """Logs epochs to MLflow and shows them; retries a store that was away while training runs."""
    latest: History = []

    def on_history(history: History) -> None:
        latest[:] = history
        progress.epochs(history)
        run.log_history(history)

    def on_poll() -> None:
        run.check_lease()
        run.log_history(latest)

    def on_cache_decision(decision: CacheDecision) -> None:
        display.show(f"This run {decision.reason}")

    return ray_train.Listener(
        on_cache_decision=on_cache_decision,
        on_notice=display.show,
        on_progress=progress.step,
        on_history=on_history,
        on_poll=on_poll,
        on_interrupt=lambda: display.show("Stopping: writing a checkpoint ..."),
    )


def _finish(run: TrackedRun, spec: RunSpec, dataset: Dataset, display: Display) -> TrainResult:
    """Logs what is left after the last epoch: missing metrics, the best epoch, the model."""
    stored = checkpoints.newest(spec.storage)
    if stored is None:
        raise RunError(
            f"There is no checkpoint of the run in {spec.storage}. With several machines, start a "
            f"new run with a --storage that all of them share."
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = checkpoints.fetch(stored.location, Path(temporary) / "checkpoint")
        position, _ = read_position(folder)
        # First: if the store is still away, this tells the user how to log the rest later.
        run.catch_up(position.history)
        run.log_final({f"best/{name}": value for name, value in position.best.items()})
        display.show("Exporting the model ...")
        metadata = {"run_id": run.run_id, "preset": spec.config.preset}
        uri = model_logging.export_and_log(folder, spec.config, dataset, metadata)
    return TrainResult(run.run_id, run.name, uri, position.best)


def _stored_history(storage: str) -> History:
    """Returns the epochs of earlier attempts."""
    stored = checkpoints.newest(storage)
    return _read_remote_position(stored.location).history if stored else []


def _read_remote_position(location: str) -> Position:
    with tempfile.TemporaryDirectory() as temporary:
        state = read_text(f"{location}/{STATE_FILE}")
        (Path(temporary) / STATE_FILE).write_text(state, "utf-8")
        return read_position(Path(temporary))[0]
