"""A training run from its first line in MLflow to its logged model, over any number of attempts."""

import datetime
import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from drone.adapters import mlflow_model, ray_cluster, ray_train, storage
from drone.adapters import mlflow_tracking as tracking
from drone.adapters.mlflow_tracking import TrackedRun
from drone.config import flatten, override, to_dict
from drone.data.dataset import Dataset
from drone.errors import RunError
from drone.model import mobilenet
from drone.model.weights import Weights
from drone.training.checkpoint import STATE_FILE, read_position
from drone.training.config import TrainConfig
from drone.training.context import History, Progress
from drone.training.features import Reuse
from drone.training.planner import Decision, Extent

LAUNCH_FILE = "launch.json"
"""Artifact of a run: what it takes to go on with it."""


class Watcher(Protocol):
    """Shows the run to a person."""

    def progress(self, where: Progress) -> None:
        """Somewhere in an epoch."""

    def history(self, history: History) -> None:
        """An epoch has ended; all so far."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run computes, from what, and where its checkpoints go."""

    config: TrainConfig
    data: str
    """Folder or URI of the data set."""

    weights: str
    """As `weights.load` takes it."""

    storage: str
    """Folder or URI of this run's checkpoints."""

    def as_json(self) -> str:
        """For the artifact from which the run can go on."""
        known = self.weights in ("imagenet", "none")
        content = {
            "config": to_dict(self.config),
            "data": storage.absolute(self.data),
            "weights": self.weights if known else str(Path(self.weights).resolve()),
            "storage": self.storage,
        }
        return json.dumps(content, indent=1)


def plan_of(run_id: str) -> Plan:
    """The plan that a run was started with.

    Raises:
        RunError: it never got as far as to have one.
    """
    with tempfile.TemporaryDirectory() as temporary:
        try:
            content = mlflow_model.read_json(run_id, LAUNCH_FILE, Path(temporary))
        except RunError as error:
            raise RunError(
                f"Run {run_id} cannot be gone on with: it ended before training began, or was "
                f"not made by train.py. Start it anew."
            ) from error
    return Plan(
        config=override(TrainConfig(), content["config"], f"run {run_id}"),
        data=content["data"],
        weights=content["weights"],
        storage=content["storage"],
    )


def describe(run: TrackedRun, plan: Plan, dataset: Dataset, weights: Weights) -> str:
    """Logs all that decides a new run before it begins.

    Returns:
        A line on the model for a person.
    """
    config = plan.config
    model = mobilenet.build(config.model, len(dataset.classes), config.seed, weights.state())
    counts = model.parameter_counts()
    run.log_params(flatten(to_dict(config)))
    run.log_params({"parameters": counts.total, "parameters_trainable": counts.trainable})
    run.log_tags(
        {
            "preset": config.preset,
            "pretrained": weights.pretrained,
            "weights_sha256": weights.sha256,
            "fingerprint": dataset.fingerprint,
            "commit": commit(),
            "classes": json.dumps(dataset.classes),
        }
    )
    run.log_dataset(dataset)
    run.log_text(plan.as_json(), LAUNCH_FILE)
    return (
        f"{counts.total:,} parameters, {counts.trainable:,} of them learn; "
        f"data set {dataset.fingerprint[:12]}"
    )


def commit() -> str:
    """The git commit of the program, or "unknown"."""
    words = ["git", "-C", str(ray_cluster.ROOT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the user asked for; None means what there is."""

    num_workers: int | None
    min_workers: int | None
    """Fewer will do while machines are missing; None waits for all."""

    gpus_per_worker: float | None
    max_failures: int
    reuse: Reuse
    """Where each node keeps activations of frozen blocks."""


def train(
    run: TrackedRun,
    plan: Plan,
    fingerprint: str,
    weights: Weights,
    resources: Resources,
    watcher: Watcher,
    say: Callable[[str], None],
) -> None:
    """Trains what is left of a run; Ray must be connected.

    Args:
        run: to log to.
        plan: what it computes.
        fingerprint: of its data set.
        weights: that it starts from.
        resources: what it may use.
        watcher: shows it to a person.
        say: prints a line.

    Raises:
        Interrupted: by Ctrl-C or SIGTERM, after a checkpoint.
        TrainingError: training cannot go on.
    """
    place = ray_cluster.writable(plan.storage)
    if place != plan.storage:
        say(f"Other machines do not share {plan.storage}: checkpoints come here over the network.")
    stored = storage.newest(place)
    if stored is not None:
        say(f"Going on from epoch {stored.epoch}, step {stored.batch}")
        if stored.epoch >= plan.config.epochs:
            return
    workers = ray_train.choose_workers(
        resources.num_workers, resources.gpus_per_worker, resources.min_workers
    )
    if waiting := ray_train.waits_for(workers):
        say(waiting)
    run.log_tags({"num_workers": workers.count, "gpus_per_worker": workers.gpus})
    launch = ray_train.Launch(
        config=plan.config,
        data=ray_cluster.readable(storage.absolute(plan.data)),
        fingerprint=fingerprint,
        weights=weights,
        workers=workers,
        storage=place,
        attempt=f"attempt_{datetime.datetime.now():%Y%m%d_%H%M%S}",
        resume=stored.place if stored else None,
        max_failures=resources.max_failures,
        commit=commit(),
        reuse=resources.reuse,
        extent=Extent(),
    )
    latest: History = []

    def on_history(history: History) -> None:
        latest[:] = history
        watcher.history(history)
        run.log_history(history)

    def on_plan(decision: Decision) -> None:
        say(f"This run {decision.reason}")

    listener = ray_train.Listener(
        on_plan=on_plan,
        on_notice=say,
        on_progress=watcher.progress,
        on_history=on_history,
        on_wait=lambda: run.log_history(latest),
        on_interrupt=lambda: say("Stopping: a checkpoint is being written ..."),
    )
    ray_train.train(launch, listener)


@dataclass(frozen=True)
class Finished:
    """A run that is complete."""

    model_uri: str
    best: dict[str, float]
    """"epoch", "macro_f1" and "loss" on validation."""


def finish(run: TrackedRun, plan: Plan, dataset: Dataset, say: Callable[[str], None]) -> Finished:
    """Logs what is left after the last epoch: missing metrics, the best epoch, the model.

    Raises:
        RunError: there is no checkpoint, or the exported model differs from the trained one.
        TrackingError: the tracking server is away.
    """
    stored = storage.newest(plan.storage)
    if stored is None:
        raise RunError(
            f"No checkpoint of the run was found in {plan.storage}. With several nodes --storage "
            f"must be a place that all of them share."
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = storage.fetch(stored.place, Path(temporary) / "checkpoint")
        position = read_position(folder)[0]
        run.catch_up(position.history)
        run.log_summary({f"best/{name}": value for name, value in position.best.items()})
        say("Exporting the model ...")
        metadata = {"run_id": run.run_id, "preset": plan.config.preset}
        uri = mlflow_model.deliver(folder, plan.config, dataset, metadata)
    return Finished(model_uri=uri, best=position.best)


def known_history(plan: Plan) -> History:
    """The epochs of earlier attempts."""
    stored = storage.newest(plan.storage)
    if stored is None:
        return []
    with tempfile.TemporaryDirectory() as temporary:
        state = storage.read_text(f"{stored.place}/{STATE_FILE}")
        (Path(temporary) / STATE_FILE).write_text(state, "utf-8")
        return read_position(Path(temporary))[0].history


def resumable(wanted: str) -> tuple[str, str]:
    """Id and name of a run that can go on.

    Raises:
        RunError: it does not exist or is finished.
    """
    found = tracking.find_run(wanted)
    if found.info.status == "FINISHED":
        raise RunError(
            f"Run {wanted} is finished; there is nothing to resume. For more epochs start a new "
            f"run with --epochs."
        )
    return found.info.run_id, found.info.run_name
