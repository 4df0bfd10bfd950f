"""Ray Tune runs the trials of a study: any number at once, in processes that are used again."""

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

# Before Ray Tune is imported: the study keeps its own state and its own log.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import optuna
from optuna.study import Study as OptunaStudy
from optuna.trial import TrialState
from ray import tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from drone.adapters import ray_cluster, storage, tune_trial
from drone.adapters.optuna_study import unfinished
from drone.adapters.ray_train import Workers
from drone.errors import ConfigError, Interrupted
from drone.search.space import Space, suggest
from drone.search.study import TrialRecord
from drone.training.config import TrainConfig

METRIC, TIME = "objective", "epoch"
_REDUCTION = 2
"""Of the trials that reach a rung, one in this many goes on."""


class Recorder(Protocol):
    """Hears of every trial, in the process that launched them, before Ray Tune goes on."""

    def began(self, part: str, record: TrialRecord) -> None:
        """A trial begins, or goes on."""

    def changed(self, part: str, record: TrialRecord) -> None:
        """It has a new epoch, or is over."""


@dataclass(frozen=True, kw_only=True)
class Slots:
    """What the trials compute on."""

    at_once: int
    workers: Workers
    """Of each trial."""


def choose_slots(
    at_once: int | None, workers_per_trial: int, gpus_per_worker: float | None, num_trials: int
) -> Slots:
    """As many trials at once as fit; each has its processors and GPUs for itself.

    By default one for each GPU, or one for each processor core, but at most a quarter of the
    trials: a search learns from those before.

    Raises:
        ConfigError: not even one fits, or not as many as asked for.
    """
    resources, nodes = ray_cluster.room()
    cpus, gpus = int(resources.get("CPU", 0)), float(resources.get("GPU", 0))
    if workers_per_trial < 1:
        raise ConfigError(f"--workers-per-trial is {workers_per_trial}; at least 1.")
    if gpus_per_worker is None:
        gpus_per_worker = 1.0 if gpus >= workers_per_trial else 0.0
    most = cpus // workers_per_trial
    if gpus_per_worker:
        most = min(most, int(gpus / (workers_per_trial * gpus_per_worker)))
    if most < 1:
        raise ConfigError(
            f"A trial of {workers_per_trial} workers with {gpus_per_worker:g} GPUs each does not "
            f"fit: Ray has {cpus} processor cores and {gpus:g} GPUs. Lower --workers-per-trial."
        )
    if at_once is None:
        at_once = min(most, max(1, num_trials // 4))
    if not 1 <= at_once <= most:
        raise ConfigError(f"--concurrency is {at_once}; Ray has room for 1 to {most} trials.")
    each = max(1, cpus // (at_once * workers_per_trial))
    # No worker may want more than its node has.
    each = min(each, int(min(nodes)))
    workers = Workers(
        count=workers_per_trial, least=workers_per_trial, cpus=each, gpus=gpus_per_worker
    )
    return Slots(at_once=at_once, workers=workers)


def make_scheduler(name: str, base: TrainConfig, space: Space) -> TrialScheduler:
    """What ends trials early: "asha", "median" or "none".

    None is stopped before its head's own epochs and the warm-up are over and one more has shown
    what came of them.
    """
    grace = grace_epochs(base, space)
    if name == "none" or grace >= base.epochs:
        return FIFOScheduler()
    if name == "median":
        return MedianStoppingRule(
            time_attr=TIME, metric=METRIC, mode="max", grace_period=grace, min_samples_required=4
        )
    return AsyncHyperBandScheduler(
        time_attr=TIME,
        metric=METRIC,
        mode="max",
        max_t=base.epochs,
        grace_period=grace,
        reduction_factor=_REDUCTION,
    )


def grace_epochs(base: TrainConfig, space: Space) -> int:
    """Epochs that every trial gets."""
    optim = base.optim
    most = {"optim.head_epochs": optim.head_epochs, "optim.warmup_epochs": optim.warmup_epochs}
    for name in most:
        if name in space:
            most[name] = max(space[name].examples())
    return math.ceil(sum(most.values())) + 1


class _Earlier:
    """What a scheduler needs to know of a trial that is not run again."""

    status = "RUNNING"

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


class _NoOthers:
    """Whom a scheduler asks for waiting trials; while it hears of earlier ones there are none."""

    def get_live_trials(self) -> list[Any]:
        return []


def recall(scheduler: TrialScheduler, trial_id: str, record: TrialRecord) -> bool:
    """Tells a new scheduler of the epochs of an earlier attempt.

    Returns:
        Whether it would end the trial after the last of them.
    """
    trial, controller = _Earlier(trial_id), _NoOthers()
    scheduler.on_trial_add(controller, trial)
    for entry in record.history:
        result = {TIME: entry["epoch"], METRIC: entry["metrics"]["objective"]}
        decision = scheduler.on_trial_result(controller, trial, result)
        if decision == TrialScheduler.STOP:  # It wants to hear no more of this one.
            return entry is record.history[-1]
    return False


class _Recording:
    """What every source of trials does with what Ray Tune tells it."""

    def prepare(
        self,
        part: str,
        recorder: Recorder,
        at_once: int,
        epochs: int,
        may_begin: Callable[[], bool],
    ) -> None:
        """Takes what it needs beside its own.

        Args:
            part: of the study.
            recorder: hears of every trial.
            at_once: most trials at the same time.
            epochs: of a whole trial.
            may_begin: whether another trial may begin (the time is not over).
        """
        self.part, self.recorder, self.at_once, self.epochs = part, recorder, at_once, epochs
        self.may_begin = may_begin
        self.live: dict[str, TrialRecord] = {}
        self.all_begun = False

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray Tune wants to keep a copy; a study goes on from its own files.

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a study goes on from its own files."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a study goes on from its own files."""

    def next_record(self, trial_id: str) -> TrialRecord | None:
        """The next trial, or None if there is none left."""
        raise NotImplementedError

    def suggest(self, trial_id: str) -> Any:
        """What Ray Tune starts next."""
        if len(self.live) >= self.at_once:
            return None
        if not self.may_begin():
            return Searcher.FINISHED
        record = self.next_record(trial_id)
        if record is None:
            self.all_begun = True
            return Searcher.FINISHED
        self.live[trial_id] = record
        self.recorder.began(self.part, record)
        return {
            "part": self.part,
            "number": record.number,
            "params": record.params,
            "seed": record.seed,
            "resplit": record.resplit,
            "known": len(record.history),
        }

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """An epoch, or the reason why there are no more."""
        record = self.live[trial_id]
        _take(record, result)
        self.recorder.changed(self.part, record)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """The trial is over."""
        record = self.live.pop(trial_id)
        if result:
            _take(record, result)
        if error:
            record.state = "failed"
            record.reason = "its process was lost several times (out of memory?)"
        elif record.state == "running":
            whole = len(record.history) >= self.epochs
            record.state = "finished" if whole else "pruned"
        self.recorder.changed(self.part, record)


def _take(record: TrialRecord, result: Mapping[str, Any]) -> None:
    """Puts a report into the record, once."""
    if tune_trial.NEWS not in result:
        return
    news = json.loads(result[tune_trial.NEWS])
    entry = news["entry"]
    if entry and entry["epoch"] == len(record.history) + 1:
        record.history.append(entry)
        record.objective = float(result[METRIC])
    record.usage, record.reuse = news["usage"], news["reuse"]
    if news["state"] in ("ended", "failed"):
        record.state, record.reason = news["state"], news["reason"]


class StudySearch(_Recording, OptunaSearch):  # type: ignore[misc]
    """Optuna's suggestions; first, the trials that an earlier attempt left unfinished."""

    def __init__(
        self,
        study: OptunaStudy,
        space: Space,
        base: TrainConfig,
        num_trials: int,
        records: list[TrialRecord],
        scheduler: TrialScheduler,
    ) -> None:
        """Goes on where the records stand.

        Args:
            study: Optuna's.
            space: what is searched.
            base: settings of all trials.
            num_trials: of the whole study.
            records: of all trials so far.
            scheduler: new; is told of the trials so far.
        """
        OptunaSearch.__init__(
            self,
            space=_nothing,
            metric=METRIC,
            mode="max",
            sampler=study.sampler,
            storage=study._storage,
            study_name=study.study_name,
        )
        self._space = lambda trial: suggest(space, base, trial)
        self.base, self.num_trials, self.scheduler = base, num_trials, scheduler
        self.known = {record.number: record for record in records}
        # One that is over may have been killed before Optuna heard of it; that is made up for.
        over = {record.number for record in records if record.is_over}
        self.waiting = [trial for trial in unfinished(study) if trial.number not in over]
        for record in records:
            if record.is_over:
                recall(scheduler, f"earlier-{record.number}", record)

    def next_record(self, trial_id: str) -> TrialRecord | None:
        """An unfinished trial of an earlier attempt, else what Optuna suggests."""
        while True:
            if self.waiting:
                frozen = self.waiting.pop(0)
                trial = optuna.trial.Trial(self._ot_study, frozen._trial_id)
                self._ot_trials[trial_id] = trial
            elif self._begun() >= self.num_trials:
                return None
            # The same for a trial that has its values already, which Optuna remembers.
            params = OptunaSearch.suggest(self, trial_id)
            number = self._ot_trials[trial_id].number
            flat = dict(self._ot_trials[trial_id].params)
            assert params is not None
            record = self.known.get(number) or TrialRecord(number, flat, self.base.seed)
            if not record.history or not recall(self.scheduler, trial_id, record):
                return record
            # Decided just before the earlier attempt was killed.
            record.state = "finished" if len(record.history) >= self.base.epochs else "pruned"
            self.recorder.began(self.part, record)
            self.recorder.changed(self.part, record)
            self._ot_trials.pop(trial_id)

    def _begun(self) -> int:
        """Trials that are more than an entry in a queue."""
        trials = self._ot_study.get_trials(deepcopy=False)
        return sum(trial.state != TrialState.WAITING for trial in trials)


def _nothing(trial: object) -> None:
    """Stands in for the space, which is set afterwards: OptunaSearch asks for one at once."""


class Repeats(_Recording, Searcher):  # type: ignore[misc]
    """Given trials, one after the other."""

    def __init__(self, records: list[TrialRecord]) -> None:
        """Takes the trials that are to run."""
        Searcher.__init__(self, metric=METRIC, mode="max")
        self.waiting = [record for record in records if not record.is_over]

    def next_record(self, trial_id: str) -> TrialRecord | None:
        """The next one."""
        return self.waiting.pop(0) if self.waiting else None


def run(
    source: StudySearch | Repeats,
    scheduler: TrialScheduler,
    spec: tune_trial.Spec,
    slots: Slots,
    attempt: str,
) -> None:
    """Runs all trials of a source; blocks.

    Args:
        source: gives the trials and records what comes of them.
        scheduler: ends some of them early.
        spec: what they have in common.
        slots: what they compute on.
        attempt: name of this start, different from earlier ones'.

    Raises:
        Interrupted: by Ctrl-C or SIGTERM.
    """
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    workers = slots.workers
    alone = workers.count == 1
    # A trial that is a run of Ray Train itself only waits: any share of a processor would be one
    # that its workers may lack, so it asks for a little memory instead.
    waiting = tune.PlacementGroupFactory([{"memory": 1_000_000}])
    wanted = {"CPU": workers.cpus, "GPU": workers.gpus} if alone else waiting
    trainable = tune.with_resources(tune.with_parameters(tune_trial.run, spec=spec), wanted)
    place, filesystem = storage.for_ray(spec.storage)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=source,
            scheduler=scheduler,
            num_samples=-1,
            reuse_actors=alone,
            trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=attempt,
            storage_path=place,
            storage_filesystem=filesystem,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=2),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        tuner.fit()
    except KeyboardInterrupt as error:
        raise Interrupted("The search was stopped; --resume goes on from here.") from error
    if source.live or not (source.all_begun or not source.may_begin()):
        raise Interrupted("The search was stopped; --resume goes on from here.")
