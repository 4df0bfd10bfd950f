"""Launches the training loop on Ray Train: any number of workers, on CPUs or GPUs."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from drone.cluster import connection
from drone.cluster.train_job import TrainJob, Workers
from drone.cluster.worker import StoppableTorchConfig, train_worker
from drone.cluster.worker_channel import WorkerChannel
from drone.errors import ConfigError, DroneError, Interrupted, ResumableError, TrainingError
from drone.model.weights import Weights
from drone.storage.filesystem import for_ray
from drone.training.activation_cache.policy import CacheDecision
from drone.training.best_epoch import History
from drone.training.context import Progress

_POLL_S = 0.5
_MAX_STOP_S = 60.0
"""Seconds within which workers stop: a step, and a checkpoint."""

_RESIZE_INTERVAL_S = 10.0
"""Seconds between two checks whether more workers could join."""

_MAX_CHECKPOINTS = 2
"""Checkpoint retention: how many of the newest stay in storage."""


@dataclass(frozen=True)
class Listener:
    """Callbacks of a run, called in the process that launched it."""

    on_cache_decision: Callable[[CacheDecision], None]
    """Called once, at the start."""

    on_notice: Callable[[str], None]
    """Called with a worker's message for the user."""

    on_progress: Callable[[Progress], None]
    on_history: Callable[[History], None]
    """Called with all epochs so far, each time one ends."""

    on_poll: Callable[[], None]
    """Called about twice a second."""

    on_interrupt: Callable[[], None]
    """Called after Ctrl-C, when the workers have been asked to stop."""


def choose_workers(
    num_workers: int | None, gpus_per_worker: float | None, min_workers: int | None = None
) -> Workers:
    """Allocates workers: by default one per GPU, or one that uses all CPUs.

    Args:
        num_workers: Number that the user set; None for the default.
        gpus_per_worker: None uses one GPU each, if there are any.
        min_workers: Minimum to start with while there is no room for more; None needs all.

    Raises:
        ConfigError: Ray has fewer CPUs or GPUs, and will not get them.
    """
    totals, cpus_by_node = connection.available_resources()
    cpus, gpus = int(totals.get("CPU", 0)), float(totals.get("GPU", 0))
    if gpus_per_worker is None:
        gpus_per_worker = 1.0 if gpus else 0.0
    fitting = connection.fitting_workers(gpus, gpus_per_worker) if gpus_per_worker else None
    if num_workers is None:
        num_workers = 1 if fitting is None else max(1, fitting)
    if num_workers < 1:
        raise ConfigError(f"--num-workers is {num_workers}; it must be at least 1.")
    min_workers = num_workers if min_workers is None else min_workers
    if not 1 <= min_workers <= num_workers:
        raise ConfigError(
            f"--min-workers is {min_workers}; it must be 1 to {num_workers}, the --num-workers."
        )
    if min_workers > cpus:
        raise ConfigError(
            f"--num-workers is {num_workers}, but Ray has {cpus} CPUs; set at most {cpus}."
        )
    if fitting is not None and min_workers > fitting:
        raise ConfigError(
            f"{min_workers} workers with --gpus-per-worker {gpus_per_worker:g} do not fit on the "
            f"{gpus:g} GPUs that Ray has; {fitting} do. Lower one of the two; --gpus-per-worker 0 "
            f"trains on CPUs."
        )
    # Rounded up: the CPUs must suffice on the machine that gets the most workers.
    workers_per_node = -(-num_workers // len(cpus_by_node))
    return Workers(
        num_workers=num_workers,
        min_workers=min_workers,
        cpus_per_worker=max(1, int(min(cpus_by_node)) // workers_per_node),
        gpus_per_worker=gpus_per_worker,
        may_wait=connection.on_cluster(),
    )


def waiting_message(workers: Workers) -> str | None:
    """Returns a message if the cluster must grow before the workers fit, otherwise None."""
    present = ray.cluster_resources()
    needed = {
        "CPU": workers.min_workers * workers.cpus_per_worker,
        "GPU": workers.min_workers * workers.gpus_per_worker,
    }
    missing = {name: amount for name, amount in needed.items() if present.get(name, 0) < amount}
    if not missing:
        return None
    amounts = " and ".join(
        f"{amount:g} {name}s (present: {present.get(name, 0):g})"
        for name, amount in missing.items()
    )
    return f"Waiting for machines: the workers need {amounts}. New ones take some minutes."


def train(job: TrainJob, weights: Weights, listener: Listener) -> None:
    """Trains to the last epoch; blocks, and reacts to Ctrl-C.

    Raises:
        Interrupted: Stopped by Ctrl-C or SIGTERM, after a checkpoint.
        ResumableError: Workers were lost too often, or the storage failed for too long.
        TrainingError: Training cannot continue.
    """
    channel = WorkerChannel()
    outcome: dict[str, Any] = {}
    ended = threading.Event()
    trainer = _trainer(job, weights, channel)
    arguments = (trainer, outcome, ended)
    # A daemon, so that a second Ctrl-C need not wait for Ray.
    threading.Thread(target=_fit, args=arguments, daemon=True).start()
    try:
        _listen(ended, channel, listener, outcome)
    except KeyboardInterrupt:
        # Workers that do not start would never answer, and there is nothing to save yet.
        if "started" not in outcome:
            raise Interrupted(
                "The run was stopped before its workers had started. Continue with --resume."
            ) from None
        # A second Ctrl-C from here on ends the process at once.
        channel.request_stop()
        listener.on_interrupt()
        _listen(ended, channel, listener, outcome)
    except BaseException:
        # The listener has had enough. Workers that went on would keep their processors.
        channel.request_stop()
        ended.wait(_MAX_STOP_S)
        raise
    _raise_failure(outcome, job.max_failures)


def _fit(trainer: TorchTrainer, outcome: dict[str, Any], ended: threading.Event) -> None:
    """Runs Ray's trainer, in a thread, so that the main thread receives signals.

    The event says that it has ended, not the thread: a Ctrl-C during Thread.join makes Python 3.11
    consider a running thread finished.
    """
    try:
        outcome["result"] = trainer.fit()
    except BaseException as error:  # Carried to the main thread, which raises it.
        outcome["error"] = error
    finally:
        ended.set()


def _trainer(job: TrainJob, weights: Weights, channel: WorkerChannel) -> TorchTrainer:
    workers = job.workers
    storage_path, storage_filesystem = for_ray(job.storage)
    resources: dict[str, float] = {"CPU": workers.cpus_per_worker}
    if workers.gpus_per_worker:
        resources["GPU"] = workers.gpus_per_worker
    elastic = workers.min_workers < workers.num_workers
    return TorchTrainer(
        train_worker,
        # The weights go through the object store: once to each machine, not once to each worker.
        train_loop_config={"job": job, "channel": channel, "weights": ray.put(weights)},
        torch_config=StoppableTorchConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(workers.min_workers, workers.num_workers)
            if elastic
            else workers.num_workers,
            elastic_resize_monitor_interval_s=_RESIZE_INTERVAL_S,
            use_gpu=workers.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=job.attempt,
            storage_path=storage_path,
            storage_filesystem=storage_filesystem,
            failure_config=ray.train.FailureConfig(
                max_failures=job.max_failures,
                # On a cluster workers that cannot start may be waiting for machines.
                controller_failure_limit=-1 if workers.may_wait else job.max_failures,
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=_MAX_CHECKPOINTS),
        ),
    )


def _listen(
    ended: threading.Event, channel: WorkerChannel, listener: Listener, outcome: dict[str, Any]
) -> None:
    while True:
        has_ended = ended.is_set()  # Before draining: nothing is published after that.
        for message in channel.drain():
            outcome["started"] = True
            if isinstance(message, Progress):
                listener.on_progress(message)
            elif isinstance(message, CacheDecision):
                listener.on_cache_decision(message)
            elif isinstance(message, str):
                listener.on_notice(message)
            else:
                listener.on_history(message)
        listener.on_poll()
        if has_ended:
            return
        ended.wait(_POLL_S)


def _raise_failure(outcome: dict[str, Any], max_failures: int) -> None:
    if "error" in outcome:
        error = outcome["error"]
        # What the user can fix lies below Ray's own exceptions.
        for failure in getattr(error, "worker_failures", {}).values():
            cause = getattr(failure, "cause", failure)
            if isinstance(cause, DroneError):
                raise cause from error
        if isinstance(error, TrainingFailedError):
            raise ResumableError(
                f"Workers were lost, or did not start, more than {max_failures} times "
                f"(--max-failures); the last checkpoint is kept. Ray says: {_last_line(error)}."
            ) from error
        raise error
    status = outcome["result"].return_value or {"status": "done"}
    if status["status"] == "interrupted":
        raise Interrupted(status["message"])
    if status["status"] == "failed":
        raise TrainingError(status["message"])


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
