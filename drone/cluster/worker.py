"""The worker side of Ray Train: runs the training loop with a context of Ray."""

import os
import signal
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig

from drone.cluster import head_files  # noqa: F401  Makes head:// reachable in this process.
from drone.cluster.train_job import TrainJob
from drone.cluster.worker_channel import WorkerChannel
from drone.errors import Interrupted, TrainingError
from drone.model import mobilenet
from drone.model.weights import Weights
from drone.storage import checkpoints, dataset_cache
from drone.training.activation_cache.policy import plan_caching
from drone.training.best_epoch import History
from drone.training.context import Context, Progress, Stop
from drone.training.data import TrainingData
from drone.training.loop import fit

_PROGRESS_INTERVAL_S = 0.5

_terminated = threading.Event()
"""Set in a worker that received SIGTERM."""


def train_worker(loop_config: dict[str, Any]) -> dict[str, str]:
    """Trains on one worker.

    Args:
        loop_config: "job", a TrainJob; "channel", a WorkerChannel; "weights", a reference to the
            starting weights.

    Returns:
        "status" and "message" of an end that all ranks reach together: raised, Ray would retry it.
    """
    job: TrainJob = loop_config["job"]
    channel: WorkerChannel = loop_config["channel"]
    weights: Weights = ray.get(loop_config["weights"])
    config, workers = job.config, job.workers
    # torch would take all cores of the machine, its neighbours' included.
    torch.set_num_threads(workers.cpus_per_worker)
    dataset = dataset_cache.open_at(job.data, job.fingerprint, at_bins=config.model.mixed)
    data = TrainingData.of(dataset, job.fold, config.train_on)
    model = mobilenet.build(config.model, len(dataset.classes), config.seed, weights.state())
    with tempfile.TemporaryDirectory() as temporary:
        context = _RayContext(job, channel, Path(temporary))
        decision = plan_caching(
            config,
            model,
            data,
            context.device,
            job.cache,
            job.workload,
        )
        if context.rank == 0:
            # All ranks decide alike; one of them says so.
            channel.publish(decision)
            if workers.min_workers < workers.num_workers:
                channel.publish(f"{context.world_size} of {workers.num_workers} workers train.")
        try:
            fit(
                config,
                data,
                model,
                context,
                job.cache if decision.use else None,
                job.commit,
                keep_predictions=job.keep_predictions,
            )
        except Interrupted as error:
            return {"status": "interrupted", "message": str(error)}
        except TrainingError as error:
            return {"status": "failed", "message": str(error)}
    return {"status": "done"}


class _RayContext(Context):
    """The training loop's context in a worker of Ray Train."""

    def __init__(self, job: TrainJob, channel: WorkerChannel, scratch: Path) -> None:
        """Takes rank and device from Ray; `scratch` is an empty local folder."""
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.checkpoint_each_epoch = True
        self._job, self._channel, self._scratch = job, channel, scratch
        self._stop_reply: ray.ObjectRef | None = None
        self._stop_requested = False
        self._last_progress = 0.0

    def report(self, history: History, checkpoint: Path | None) -> None:
        """Reports to Ray, which stores the checkpoint, then to the driver.

        The driver learns of an epoch only when its checkpoint is safe.
        """
        if checkpoint is not None:
            checkpoints.wait_for_space(self._job.storage, checkpoint, self._channel.publish)
        stored = ray.train.Checkpoint.from_directory(checkpoint) if checkpoint else None
        metrics = history[-1]["metrics"] if history else {}
        # On every rank: Ray waits for all of them before it stores a checkpoint.
        ray.train.report(metrics, checkpoint=stored)
        if self.rank == 0 and history:
            self._channel.publish(history)

    def progress(self, progress: Progress) -> None:
        """Reports to the driver, at most twice a second."""
        now = time.monotonic()
        if now - self._last_progress >= _PROGRESS_INTERVAL_S or progress.step == progress.steps:
            self._last_progress = now
            self._channel.publish_latest(progress)

    def resume_from(self) -> Path | None:
        """Returns Ray's newest checkpoint of this attempt, else that of an earlier one."""
        latest = ray.train.get_checkpoint()
        if latest is not None:
            return Path(latest.to_directory(str(self._scratch / "resumed")))
        if self._job.resume_from is not None:
            return checkpoints.fetch(self._job.resume_from, self._scratch / "resumed")
        return None

    def stop(self) -> Stop:
        """Returns whether to stop: the driver has asked to, or this machine is going away."""
        if _terminated.is_set():
            return Stop.PREEMPTED
        # One rank is enough: the loop makes all agree after the step.
        if self.rank == 0 and not self._stop_requested:
            self._stop_requested = self._poll_driver()
        return Stop.INTERRUPTED if self._stop_requested else Stop.NO

    def _poll_driver(self) -> bool:
        """Returns the driver's reply if it has arrived, without waiting for it."""
        if self._stop_reply is None:
            self._stop_reply = self._channel.stop_requested()
        # Waiting would add a round trip to the driver to each step.
        ready, _ = ray.wait([self._stop_reply], timeout=0)
        if not ready:
            return False
        reply, self._stop_reply = bool(ray.get(self._stop_reply)), None
        return reply


def _install_sigterm_handler() -> None:
    """Makes a worker's first SIGTERM a request to stop; the second one ends the process.

    Runs on the worker's main thread, the only one that may set a handler.
    """
    _terminated.clear()

    def handle(*_: object) -> None:
        if _terminated.is_set():
            # Without clean-up, which could hang; after a second signal nobody waits.
            os._exit(1)
        _terminated.set()

    signal.signal(signal.SIGTERM, handle)


@dataclass
class StoppableTorchConfig(TorchConfig):  # type: ignore[misc]
    """Torch's process group, with workers that handle SIGTERM."""

    @property
    def backend_cls(self) -> type:
        """The class that sets up the workers."""
        base: type = super().backend_cls

        class Stoppable(base):  # type: ignore[misc]
            def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
                super().on_training_start(worker_group, backend_config)
                # Replaces Ray's own handler, which ends the worker at once and without a
                # checkpoint.
                worker_group.execute(_install_sigterm_handler)

        return Stoppable
