"""Ray Train launches the loop: any number of workers, on processors or GPUs."""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from drone.adapters import dataset_cache, ray_cluster, storage
from drone.adapters.relay import Relay
from drone.errors import ConfigError, DroneError, Interrupted, TrainingError
from drone.model import mobilenet
from drone.model.weights import Weights
from drone.training import memory
from drone.training.config import TrainConfig
from drone.training.context import Context, History, Progress, Stop
from drone.training.features import Reuse
from drone.training.inputs import plan_reuse
from drone.training.loop import Material, fit
from drone.training.planner import Decision, Extent

_POLL_S = 0.5
_RESIZE_S = 10.0
"""Seconds between two looks whether more workers could join."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """What a run computes on."""

    count: int
    least: int
    """Fewer than this do not begin or go on."""

    cpus: int
    """Processor cores of each."""

    gpus: float
    """GPUs of each; 0 trains on the processor."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What is trained, on what, and where its checkpoints go."""

    config: TrainConfig
    data: str
    """Folder or URI of the data set; every node must reach it."""

    fingerprint: str
    """Of the data set, the same on every node."""

    weights: Weights
    workers: Workers
    storage: str
    """Folder or URI of this run's checkpoints; every node must reach it."""

    attempt: str
    """Name of this start of the run, different from earlier ones'."""

    resume: str | None
    """Checkpoint folder to go on from."""

    max_failures: int
    """How often lost workers are replaced."""

    commit: str
    resplit: int | None = None
    """Number of another way to share out training and validation; None is the data set's own."""

    reuse: Reuse
    """Where each node keeps activations of frozen blocks."""

    extent: Extent
    """What the planner must know of other runs over the same views."""


@dataclass
class Listener:
    """Who hears of the run while it lasts; called in the process that launched it."""

    on_plan: Callable[[Decision], None]
    """Gets what was decided about kept activations, at the start."""

    on_notice: Callable[[str], None]
    """Gets what a worker has to say to a person."""

    on_progress: Callable[[Progress], None]
    on_history: Callable[[History], None]
    """Gets all epochs so far, each time one ends."""

    on_wait: Callable[[], None]
    """Called about twice a second."""

    on_interrupt: Callable[[], None]
    """Called when Ctrl-C was heard and the workers have been asked to stop."""


def choose_workers(
    count: int | None, gpus_per_worker: float | None, least: int | None = None
) -> Workers:
    """As many workers as asked for; else one for each GPU, or one for all processors.

    Args:
        count: wanted.
        gpus_per_worker: GPUs of each; None takes one if there are any.
        least: that will do while there is no room for more; None needs all.

    Raises:
        ConfigError: Ray has not that many processors or GPUs, and will not get them.
    """
    resources, nodes = ray_cluster.room()
    cpus, gpus = int(resources.get("CPU", 0)), float(resources.get("GPU", 0))
    if gpus_per_worker is None:
        gpus_per_worker = 1.0 if gpus else 0.0
    if count is None:
        count = max(1, int(gpus / gpus_per_worker)) if gpus_per_worker else 1
    if count < 1:
        raise ConfigError(f"--num-workers is {count}; it must be at least 1.")
    least = count if least is None else least
    if not 1 <= least <= count:
        raise ConfigError(f"--min-workers is {least}; it must be 1 to {count}, the --num-workers.")
    if least > cpus:
        raise ConfigError(
            f"--num-workers is {count}, but Ray has {cpus} processor cores; take at most {cpus}."
        )
    if least * gpus_per_worker > gpus:
        raise ConfigError(
            f"{least} workers with --gpus-per-worker {gpus_per_worker:g} need "
            f"{least * gpus_per_worker:g} GPUs, but Ray has {gpus:g}."
        )
    per_node = -(-count // len(nodes))
    each = max(1, int(min(nodes)) // per_node)
    return Workers(count=count, least=least, cpus=each, gpus=gpus_per_worker)


def waits_for(workers: Workers) -> str | None:
    """What a person should know if the cluster must grow before the workers fit, or None."""
    there = ray.cluster_resources()
    wanted = {"CPU": workers.least * workers.cpus, "GPU": workers.least * workers.gpus}
    lacking = {name: amount for name, amount in wanted.items() if there.get(name, 0) < amount}
    if not lacking:
        return None
    needs = " and ".join(
        f"{amount:g} {name}s (there are {there.get(name, 0):g})" for name, amount in lacking.items()
    )
    return f"Waiting for machines: the workers need {needs}. New ones take some minutes."


def train(launch: Launch, listener: Listener) -> None:
    """Trains to the end; blocks, and hears Ctrl-C.

    Raises:
        Interrupted: stopped by Ctrl-C or SIGTERM, after a checkpoint.
        TrainingError: training cannot go on.
    """
    relay = Relay()
    outcome: dict[str, Any] = {}
    ended = threading.Event()
    arguments = (launch, relay, outcome, ended)
    threading.Thread(target=_fit, args=arguments, daemon=True).start()
    try:
        _listen(ended, relay, listener)
    except KeyboardInterrupt:
        # From here a second one ends at once.
        relay.ask_to_stop()
        listener.on_interrupt()
        _listen(ended, relay, listener)
    _raise_failure(outcome, launch.storage)


def _fit(launch: Launch, relay: Relay, outcome: dict[str, Any], ended: threading.Event) -> None:
    """Runs Ray's trainer; in a thread, so that the main one hears signals.

    The event, and not the thread's end, says that it is over: a Ctrl-C during Thread.join makes
    Python 3.11 take a running thread for one that has ended.
    """
    workers = launch.workers
    place, filesystem = storage.for_ray(launch.storage)
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "config": launch.config,
            "data": launch.data,
            "fingerprint": launch.fingerprint,
            "weights": ray.put(launch.weights),
            "resume": launch.resume,
            "workers": workers,
            "commit": launch.commit,
            "resplit": launch.resplit,
            "reuse": launch.reuse,
            "extent": launch.extent,
            "relay": relay,
            "storage": launch.storage,
        },
        torch_config=_StoppableTorchConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(workers.least, workers.count)
            if workers.least < workers.count
            else workers.count,
            elastic_resize_monitor_interval_s=_RESIZE_S,
            use_gpu=workers.gpus > 0,
            resources_per_worker={
                "CPU": workers.cpus,
                **({"GPU": workers.gpus} if workers.gpus else {}),
            },
        ),
        run_config=ray.train.RunConfig(
            name=launch.attempt,
            storage_path=place,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=launch.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": memory.ENVIRONMENT},
        ),
    )
    try:
        outcome["result"] = trainer.fit()
    except BaseException as error:  # Carried to the main thread, which raises it.
        outcome["error"] = error
    finally:
        ended.set()


def _listen(ended: threading.Event, relay: Relay, listener: Listener) -> None:
    while True:
        over = ended.is_set()
        for news in relay.drain():
            if isinstance(news, Progress):
                listener.on_progress(news)
            elif isinstance(news, Decision):
                listener.on_plan(news)
            elif isinstance(news, str):
                listener.on_notice(news)
            else:
                listener.on_history(news)
        listener.on_wait()
        if over:
            return
        ended.wait(_POLL_S)


def _raise_failure(outcome: dict[str, Any], place: str) -> None:
    if "error" in outcome:
        error = outcome["error"]
        for cause in getattr(error, "worker_failures", {}).values():
            root = getattr(cause, "cause", cause)
            if isinstance(root, DroneError):
                raise root from error
        if isinstance(error, TrainingFailedError):
            raise TrainingError(
                f"Workers were lost too often (see --max-failures). Checkpoints are in {place}; "
                f"--resume goes on from the last. Ray says: {_last_line(error)}"
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


def _work(loop_config: dict[str, Any]) -> dict[str, str]:
    """What each worker runs.

    An end that all ranks reach together is returned: raised, Ray would try it again.
    """
    workers: Workers = loop_config["workers"]
    torch.set_num_threads(workers.cpus)
    config: TrainConfig = loop_config["config"]
    dataset = dataset_cache.open_at(
        loop_config["data"], loop_config["fingerprint"], at_bins=config.model.mixed
    )
    material = Material.of(dataset, loop_config["commit"], loop_config["resplit"])
    weights: Weights = ray.get(loop_config["weights"])
    model = mobilenet.build(config.model, len(dataset.classes), config.seed, weights.state())
    with tempfile.TemporaryDirectory() as temporary:
        relay: Relay = loop_config["relay"]
        context = RayContext(relay, loop_config["resume"], loop_config["storage"], Path(temporary))
        reuse: Reuse = loop_config["reuse"]
        splits = material.train, material.validation
        decision = plan_reuse(
            config,
            model,
            splits,
            material.fingerprint,
            context.device,
            reuse,
            loop_config["extent"],
        )
        if context.rank == 0:
            relay.publish(decision)
            if workers.least < workers.count:
                relay.publish(f"{context.world_size} of {workers.count} workers train.")
        try:
            fit(config, material, model, context, reuse if decision.reuse else None)
        except Interrupted as stop:
            return {"status": "interrupted", "message": str(stop)}
        except TrainingError as error:
            return {"status": "failed", "message": str(error)}
    return {"status": "done"}


class RayContext(Context):
    """The loop's surroundings in a worker of Ray Train."""

    def __init__(self, relay: Relay, resume: str | None, place: str, scratch: Path) -> None:
        """Takes rank and device from Ray.

        Args:
            relay: to the driver.
            resume: checkpoint of an earlier attempt.
            place: where checkpoints go.
            scratch: an empty local folder.
        """
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.saves_each_epoch = True
        self._relay, self._resume, self._place, self._scratch = relay, resume, place, scratch
        self._asked: ray.ObjectRef | None = None
        self._stopped = False
        self._last_progress = 0.0

    def report(self, history: History, checkpoint: Path | None) -> None:
        """Reports to Ray, which keeps the checkpoint, then tells the driver.

        The driver learns of an epoch only when its checkpoint is safe.
        """
        if checkpoint is not None:
            storage.wait_for_room(self._place, checkpoint, self._tell)
        kept = ray.train.Checkpoint.from_directory(checkpoint) if checkpoint else None
        metrics = history[-1]["metrics"] if history else {}
        ray.train.report(metrics, checkpoint=kept)
        if self.rank == 0 and history:
            self._relay.publish(history)

    def _tell(self, notice: str) -> None:
        self._relay.publish(notice)

    def progress(self, progress: Progress) -> None:
        """Tells the driver, at most twice a second."""
        now = time.monotonic()
        if now - self._last_progress >= _POLL_S or progress.step == progress.steps:
            self._last_progress = now
            self._relay.publish_passing(progress)

    def resume_from(self) -> Path | None:
        """Ray's newest checkpoint of this attempt, else that of an earlier one."""
        kept = ray.train.get_checkpoint()
        if kept is not None:
            return Path(kept.to_directory(str(self._scratch / "resumed")))
        if self._resume is not None:
            return storage.fetch(self._resume, self._scratch / "resumed")
        return None

    def stop(self) -> Stop:
        """Whether the driver asks to stop, or this machine is about to go."""
        if _terminated.is_set():
            return Stop.PREEMPTED
        if self.rank == 0 and not self._stopped:
            self._stopped = self._driver_asks()
        return Stop.INTERRUPTED if self._stopped else Stop.NO

    def _driver_asks(self) -> bool:
        """Looks at the answer to the last question, if there is one, without waiting."""
        if self._asked is None:
            self._asked = self._relay.stop_asked()
        ready, _ = ray.wait([self._asked], timeout=0)
        if not ready:
            return False
        answer, self._asked = bool(ray.get(self._asked)), None
        return answer


_terminated = threading.Event()
"""Set in a worker that got SIGTERM."""


def _hear_sigterm() -> None:
    """Makes a worker's SIGTERM a wish to stop; the second one ends the process.

    Runs on the worker's main thread, the only one that may set a handler.
    """
    _terminated.clear()

    def handle(*_: object) -> None:
        if _terminated.is_set():
            os._exit(1)
        _terminated.set()

    signal.signal(signal.SIGTERM, handle)


@dataclass
class _StoppableTorchConfig(TorchConfig):  # type: ignore[misc]
    """Torch's process group, and workers that hear SIGTERM."""

    @property
    def backend_cls(self) -> type:
        """The class that sets workers up."""
        base: type = super().backend_cls

        class Stoppable(base):  # type: ignore[misc]
            def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
                super().on_training_start(worker_group, backend_config)
                worker_group.execute(_hear_sigterm)

        return Stoppable
