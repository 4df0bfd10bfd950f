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

from drone.adapters import dataset_cache, ray_train, storage
from drone.adapters.ray_train import Launch, Listener, Workers
from drone.data.dataset import Dataset
from drone.errors import DroneError, Interrupted, TrainingError
from drone.model import mobilenet
from drone.model.weights import Weights
from drone.search.outcome import objective
from drone.search.space import configure
from drone.training.config import TrainConfig
from drone.training.context import Context, History, Progress, Stop
from drone.training.features import Reuse
from drone.training.inputs import plan_reuse
from drone.training.loop import Material, fit
from drone.training.planner import Decision, Extent
from drone.training.watchdog import reason_to_end

NEWS = "news"
"""What a report says beside epoch and objective, as JSON."""

CHECKPOINT_EVERY_S = 20.0
"""A trial that is killed repeats at most these seconds."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What all trials of a study have in common."""

    base: TrainConfig
    data: str
    """Folder or URI of the data set; every node must reach it."""

    fingerprint: str
    weights: Weights
    commit: str
    storage: str
    """Folder or URI; each trial has a folder below it for its checkpoints."""

    workers: Workers
    """Of each trial."""

    reuse: Reuse
    extent: Extent
    """For the planner; the pictures are filled in by the trial."""


class _Ended(Exception):
    """A trial that was told to end, for a reason of its own."""


def run(trial: Mapping[str, Any], spec: Spec) -> None:
    """Trains one trial, reporting each epoch to Ray Tune.

    Nothing that goes wrong in it is raised: the reason is its last report.

    Args:
        trial: "number", "part", "params", "seed" and "resplit" of its record, and "known": epochs
            that need not be reported again.
        spec: what trials have in common.
    """
    began = time.monotonic()
    place = place_of(spec.storage, trial["part"], trial["number"])
    reporter = _Reporter(spec.base, trial["known"], began)
    try:
        config = configure(spec.base, trial["params"], f"trial {trial['number']}")
        config = replace(config, seed=trial["seed"], checkpoint_every_s=CHECKPOINT_EVERY_S)
        dataset = _dataset(spec.data, spec.fingerprint, config.model.mixed)
        reporter.config, reporter.num_classes = config, len(dataset.classes)
        if spec.workers.count > 1:
            _train_on_many(config, spec, trial["resplit"], place, reporter)
        else:
            material = Material.of(dataset, spec.commit, trial["resplit"])
            _train_here(config, spec, place, material, reporter)
    except _Ended:
        return
    except TrainingError as error:
        reporter.end("ended", str(error))
    except Exception as error:
        kind = "" if isinstance(error, DroneError) else f"{type(error).__name__}: "
        reporter.end("failed", f"{kind}{error}".strip()[:500])
    if not reporter.spoke:
        reporter.end("running", "")  # Killed after its last epoch: Ray Tune wants to hear of it.


def place_of(storage_place: str, part: str, number: int) -> str:
    """Where the checkpoints of a trial are."""
    return f"{storage_place}/{part}-{number:04d}"


@functools.lru_cache(maxsize=2)
def _dataset(place: str, fingerprint: str, at_bins: bool) -> Dataset:
    """Opened once in each process."""
    return dataset_cache.open_at(place, fingerprint, at_bins=at_bins)


class _Reporter:
    """Tells Ray Tune of each epoch once."""

    def __init__(self, config: TrainConfig, known: int, began: float) -> None:
        self.config, self.began = config, began
        self.num_classes = 0  # Until the data set is open, which may fail and is then told.
        self.told = known
        self.spoke = False
        self.decision = Decision(False, "")
        self._history: History = []

    def planned(self, decision: Decision) -> None:
        """What the planner of kept activations said."""
        self.decision = decision

    def tell(self, history: History) -> None:
        """Reports the epochs that are new; ends the trial if there is a reason."""
        self._history = history
        grace = self.config.optim.head_epochs + self.config.optim.warmup_epochs
        for count in range(self.told + 1, len(history) + 1):
            so_far = history[:count]
            score = objective(so_far, self.config.select)
            reason = reason_to_end(so_far, self.num_classes, grace)
            metrics = {**so_far[-1]["metrics"], "objective": score}
            entry = {**so_far[-1], "metrics": metrics}
            self.told = count
            self._report(count, score, entry, "ended" if reason else "running", reason or "")
            if reason:
                raise _Ended

    def end(self, state: str, reason: str) -> None:
        """Reports that there are no more epochs, and why."""
        score = objective(self._history, self.config.select)
        self._report(len(self._history), score, None, state, reason)

    def _report(
        self, epoch: int, score: float, entry: dict[str, Any] | None, state: str, reason: str
    ) -> None:
        self.spoke = True
        tune.report(
            {
                "epoch": epoch,
                "objective": score,
                # As text: Ray Tune would flatten what is nested.
                NEWS: json.dumps(
                    {
                        "entry": entry,
                        "state": state,
                        "reason": reason,
                        "reuse": self.decision.reason,
                        "usage": self._usage(),
                    }
                ),
            }
        )

    def _usage(self) -> dict[str, float]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "resource/wall_s": time.monotonic() - self.began,
            "resource/peak_memory_mb": used.ru_maxrss / 1024,
        }


def _train_here(
    config: TrainConfig, spec: Spec, place: str, material: Material, reporter: _Reporter
) -> None:
    """The loop in this very process."""
    torch.set_num_threads(spec.workers.cpus)
    device = torch.device("cuda" if spec.workers.gpus else "cpu")
    model = mobilenet.build(config.model, len(material.classes), config.seed, spec.weights.state())
    splits = material.train, material.validation
    reporter.decision = plan_reuse(
        config, model, splits, material.fingerprint, device, spec.reuse, spec.extent
    )
    with tempfile.TemporaryDirectory() as temporary:
        context = _TrialContext(reporter, place, device, Path(temporary))
        reuse = spec.reuse if reporter.decision.reuse else None
        history = fit(config, material, model, context, reuse)
    reporter.tell(history)  # A trial that was killed after its last epoch has more to tell.


class _TrialContext(Context):
    """The loop's surroundings in a trial on one worker."""

    def __init__(
        self, reporter: _Reporter, place: str, device: torch.device, scratch: Path
    ) -> None:
        self.rank, self.world_size, self.device = 0, 1, device
        self.saves_each_epoch = False
        self._reporter, self._place, self._scratch = reporter, place, scratch

    def report(self, history: History, checkpoint: Path | None) -> None:
        """Keeps the checkpoint, then tells Ray Tune, which may end the trial here."""
        if checkpoint is not None:
            storage.wait_for_room(self._place, checkpoint, lambda _: None)
            # Milliseconds keep the order over restarts.
            storage.keep(checkpoint, self._place, f"checkpoint_{int(time.time() * 1000):015d}")
        self._reporter.tell(history)

    def progress(self, progress: Progress) -> None:
        """Epochs are short; nobody looks within one."""

    def resume_from(self) -> Path | None:
        """The newest checkpoint of this trial."""
        stored = storage.newest(self._place)
        return storage.fetch(stored.place, self._scratch / "resumed") if stored else None

    def stop(self) -> Stop:
        """Ray Tune ends a trial when it reports."""
        return Stop.NO


def _train_on_many(
    config: TrainConfig, spec: Spec, resplit: int | None, place: str, reporter: _Reporter
) -> None:
    """A run of Ray Train inside the trial."""
    stored = storage.newest(place)
    launch = Launch(
        config=config,
        data=spec.data,
        fingerprint=spec.fingerprint,
        weights=spec.weights,
        workers=spec.workers,
        storage=place,
        attempt=f"attempt_{int(time.time() * 1000)}",
        resume=stored.place if stored else None,
        max_failures=2,
        commit=spec.commit,
        resplit=resplit,
        reuse=spec.reuse,
        extent=spec.extent,
    )
    listener = Listener(
        on_plan=reporter.planned,
        on_notice=lambda _: None,
        on_progress=lambda _: None,
        on_history=reporter.tell,
        on_wait=lambda: None,
        on_interrupt=lambda: None,
    )
    try:
        ray_train.train(launch, listener)
    except Interrupted as error:
        raise TrainingError(str(error)) from error
