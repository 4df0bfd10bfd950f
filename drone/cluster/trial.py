"""A trial of a search, as it runs in one of Ray Tune's processes."""

import functools
import json
import resource
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ray import tune

from drone.cluster import head_files  # noqa: F401  Makes head:// reachable in this process.
from drone.cluster import train as ray_train
from drone.cluster.train import Listener
from drone.cluster.train_job import TrainJob, Workers
from drone.data.dataset import Dataset
from drone.errors import DroneError, Interrupted, TrainingError
from drone.model import mobilenet
from drone.model.weights import Weights
from drone.search.scoring import num_partitions
from drone.search.space import apply_params
from drone.search.study import State
from drone.storage import checkpoints, dataset_cache
from drone.training.activation_cache.policy import CacheDecision, CacheWorkload, plan_caching
from drone.training.activation_cache.store import CacheSpec
from drone.training.best_epoch import History
from drone.training.config import TrainConfig
from drone.training.context import Context, Progress, Stop
from drone.training.data import Fold, TrainingData
from drone.training.early_stopping import reason_to_stop
from drone.training.loop import fit

UPDATE = "update"
"""Key of the JSON text that a trial reports."""

_CHECKPOINT_INTERVAL_S = 20.0
"""A trial that is killed repeats at most these seconds."""


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """What all trials of a study have in common."""

    base: TrainConfig
    data: str
    """Folder or URI of the data set; every machine must reach it."""

    fingerprint: str
    weights: Weights
    commit: str
    storage: str
    """Folder or URI of the checkpoints; each trial has a subfolder."""

    workers: Workers
    """Workers of each trial."""

    cache: CacheSpec
    workload: CacheWorkload
    """For the cache policy; the trial fills in the images."""


class _Stopped(Exception):
    """The trial has stopped itself, such as after diverging."""


def run_trial(trial: Mapping[str, Any], spec: TrialSpec) -> None:
    """Trains one trial fold by fold, reporting each epoch to Ray Tune.

    Nothing is raised if it fails for good: the reason is its last report.

    Args:
        trial: "number", "part", "params", "seed" and "num_folds" of its record; "until_fold", the
            number of folds after which it waits or ends; "reported" and "wall_s", the number of
            epochs that it has reported earlier, and the seconds these took.
        spec: What trials have in common.

    Raises:
        ConnectionError: The machine that the job runs on cannot be reached; also another error
            that this one has caused.
    """
    location = checkpoint_location(spec.storage, trial["part"], trial["number"])
    reporter = _Reporter(spec.base, trial["reported"], trial["wall_s"])
    try:
        config = apply_params(spec.base, trial["params"], f"trial {trial['number']}")
        config = replace(config, seed=trial["seed"], checkpoint_interval_s=_CHECKPOINT_INTERVAL_S)
        dataset = _open_dataset(spec.data, spec.fingerprint, config.model.mixed)
        reporter.config, reporter.num_classes = config, len(dataset.classes)
        for number, fold in enumerate(_folds(trial["num_folds"])[: trial["until_fold"]]):
            if reporter.start_fold(number):
                _train_fold(config, spec, dataset, fold, f"{location}/fold-{number}", reporter)
    except _Stopped:
        return
    except TrainingError as error:
        reporter.end("stopped", str(error))
    except Exception as error:
        # Ray Tune retries what is raised, as after the loss of a machine. All else would only
        # fail again.
        if ConnectionError in (type(error), type(error.__cause__)):
            raise
        kind = "" if isinstance(error, DroneError) else f"{type(error).__name__}: "
        reporter.end("failed", f"{kind}{error}".strip()[:500])
    if not reporter.has_reported:
        # Killed after its last epoch: Ray Tune needs a report to end the trial.
        reporter.end("running", "")


def _folds(num_folds: int) -> list[Fold | None]:
    """Returns what a trial holds out, one after the other; None is the validation split."""
    if num_folds == 1:
        return [None]
    return [Fold(number, num_partitions(num_folds)) for number in range(num_folds)]


def checkpoint_location(storage: str, part: str, number: int) -> str:
    """Returns the folder or URI of a trial's checkpoints, which has a subfolder for each fold."""
    return f"{storage}/{part}-{number:04d}"


# Two: in a search over model.resizer some trials read bins and others do not.
@functools.lru_cache(maxsize=2)
def _open_dataset(location: str, fingerprint: str, at_bins: bool) -> Dataset:
    """Opens the data set once in each process, which runs many trials."""
    return dataset_cache.open_at(location, fingerprint, at_bins=at_bins)


class _Reporter:
    """Reports each epoch of each fold to Ray Tune, once."""

    def __init__(self, config: TrainConfig, num_reported: int, earlier_s: float) -> None:
        self.config = config
        self.num_classes = 0  # Until the data set is open, which may fail.
        self.has_reported = False
        self.decision = CacheDecision(False, "")
        self._num_reported = num_reported
        self._fold = 0
        self._start = time.monotonic() - earlier_s

    def set_decision(self, decision: CacheDecision) -> None:
        """Takes the cache policy's decision."""
        self.decision = decision

    def start_fold(self, number: int) -> bool:
        """Takes the fold that is trained next; returns whether it has epochs to report."""
        self._fold = number
        return self._num_reported < (number + 1) * self.config.epochs

    def report(self, history: History) -> None:
        """Reports the epochs of the fold that are new; stops the trial if there is a reason."""
        optim = self.config.optim
        grace_epochs = optim.head_only_epochs + optim.warmup_epochs
        earlier = self._fold * self.config.epochs
        # Several at once if the trial was killed between a checkpoint and its report.
        for count in range(self._num_reported - earlier + 1, len(history) + 1):
            so_far = history[:count]
            reason = reason_to_stop(so_far, self.num_classes, grace_epochs)
            self._num_reported = earlier + count
            entry = {**so_far[-1], "fold": self._fold}
            self._send(entry, "stopped" if reason else "running", reason or "")
            if reason:
                raise _Stopped

    def end(self, state: State, reason: str) -> None:
        """Reports that there are no more epochs, and why."""
        self._send(None, state, reason)

    def _send(self, entry: dict[str, Any] | None, state: State, reason: str) -> None:
        self.has_reported = True
        update = {
            "entry": entry,
            "state": state,
            "reason": reason,
            "cache_reason": self.decision.reason,
            "usage": self._usage(),
        }
        # As text: Ray Tune would flatten a nested value.
        tune.report({UPDATE: json.dumps(update)})

    def _usage(self) -> dict[str, float]:
        # The peak of the process: where it is reused, an earlier trial may have reached it.
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "resource/wall_s": time.monotonic() - self._start,
            "resource/peak_memory_mb": usage.ru_maxrss / 1024,
        }


def _train_fold(
    config: TrainConfig,
    spec: TrialSpec,
    dataset: Dataset,
    fold: Fold | None,
    location: str,
    reporter: _Reporter,
) -> None:
    if spec.workers.num_workers > 1:
        _train_on_workers(config, spec, fold, location, reporter)
    else:
        _train_in_process(config, spec, TrainingData.of(dataset, fold), location, reporter)


def _train_in_process(
    config: TrainConfig, spec: TrialSpec, data: TrainingData, location: str, reporter: _Reporter
) -> None:
    """Runs the loop in this process: Ray Train would take longer to start than a trial trains."""
    torch.set_num_threads(spec.workers.cpus_per_worker)
    # Ray shows this process only the GPUs of its trial, so the first is the right one.
    device = torch.device("cuda" if spec.workers.gpus_per_worker else "cpu")
    model = mobilenet.build(config.model, len(data.classes), config.seed, spec.weights.state())
    reporter.decision = plan_caching(config, model, data, device, spec.cache, spec.workload)
    with tempfile.TemporaryDirectory() as temporary:
        context = _TrialContext(reporter, location, device, Path(temporary))
        cache = spec.cache if reporter.decision.use else None
        history = fit(config, data, model, context, cache, spec.commit, keep_predictions=True)
    reporter.report(history)  # A trial that was killed after its last epoch has epochs to report.


class _TrialContext(Context):
    """The training loop's context in a trial with one worker."""

    def __init__(
        self, reporter: _Reporter, location: str, device: torch.device, scratch: Path
    ) -> None:
        self.rank, self.world_size, self.device = 0, 1, device
        # Epochs take seconds, writing a checkpoint may too: the interval decides.
        self.checkpoint_each_epoch = False
        self._reporter, self._location, self._scratch = reporter, location, scratch

    def report(self, history: History, checkpoint: Path | None) -> None:
        """Saves the checkpoint, then reports to Ray Tune, which may end the trial here."""
        if checkpoint is not None:
            checkpoints.wait_for_space(self._location, checkpoint, lambda _: None)
            # Milliseconds keep the order over restarts.
            name = f"checkpoint_{int(time.time() * 1000):015d}"
            checkpoints.save(checkpoint, self._location, name)
        self._reporter.report(history)

    def progress(self, progress: Progress) -> None:
        """Does nothing: a trial's epochs are short."""

    def resume_from(self) -> Path | None:
        """Returns the newest checkpoint of this trial, fetched."""
        stored = checkpoints.newest(self._location)
        return checkpoints.fetch(stored.location, self._scratch / "resumed") if stored else None

    def stop(self) -> Stop:
        """Returns Stop.NO always: Ray Tune stops a trial when it reports."""
        return Stop.NO


def _train_on_workers(
    config: TrainConfig, spec: TrialSpec, fold: Fold | None, location: str, reporter: _Reporter
) -> None:
    """Runs Ray Train inside the trial."""
    stored = checkpoints.newest(location)
    job = TrainJob(
        config=config,
        data=spec.data,
        fingerprint=spec.fingerprint,
        workers=spec.workers,
        storage=location,
        # A new name: under that of a finished attempt Ray Train would train nothing.
        attempt=f"attempt_{int(time.time() * 1000)}",
        resume_from=stored.location if stored else None,
        max_failures=2,
        commit=spec.commit,
        fold=fold,
        keep_predictions=True,
        cache=spec.cache,
        workload=spec.workload,
    )
    listener = Listener(
        on_cache_decision=reporter.set_decision,
        on_notice=lambda _: None,
        on_progress=lambda _: None,
        on_history=reporter.report,
        on_poll=lambda: None,
        on_interrupt=lambda: None,
    )
    try:
        ray_train.train(job, spec.weights, listener)
    except Interrupted as error:
        raise TrainingError(str(error)) from error
