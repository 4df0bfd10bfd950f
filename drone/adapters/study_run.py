"""A study's trials and repetitions, over any number of attempts: run, recorded, published."""

import datetime
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ray.tune.schedulers import TrialScheduler

from drone.adapters import optuna_study, ray_cluster, ray_tune, storage, tune_trial
from drone.adapters.mlflow_study import Children
from drone.adapters.mlflow_tracking import TrackedRun
from drone.adapters.training_run import commit
from drone.config import flatten, to_dict
from drone.data.dataset import Dataset
from drone.errors import Interrupted, TrainingError
from drone.model.config import NUM_BLOCKS
from drone.model.weights import Weights
from drone.search.space import Choice, Range, configure, trial_name
from drone.search.study import Study, TrialRecord
from drone.search.summary import Repeated, rank_repeated, worth_repeating
from drone.training.config import TrainConfig
from drone.training.features import Reuse
from drone.training.planner import Extent, cuts_to_keep

TRIALS, CONFIRM = "trials", "confirm"


class Watcher(Protocol):
    """Shows the search to a person."""

    def begin(self, title: str, total: int, records: list[TrialRecord], at_once: int) -> None:
        """A part of the study begins, with what is known of it."""

    def trial(self, record: TrialRecord, name: str) -> None:
        """A trial began, has a new epoch or is over."""


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a search may use."""

    concurrency: int | None
    workers_per_trial: int
    gpus_per_worker: float | None
    features: Path
    """Local folder for kept activations."""

    features_disk_gb: float
    time_budget_s: float | None


class Search:
    """A study that is being run."""

    def __init__(
        self,
        study: Study,
        run: TrackedRun,
        dataset: Dataset,
        weights: Weights,
        means: Means,
        watcher: Watcher,
    ) -> None:
        """Opens the study's parts; Ray must be connected.

        Args:
            study: with its settings on disk.
            run: the parent run.
            dataset: that the study is on.
            weights: that its trials start from.
            means: what it may use.
            watcher: shows the trials to a person.
        """
        self.study, self.settings = study, study.settings
        self.dataset, self.weights, self.means = dataset, weights, means
        self.watcher = watcher
        self.children = Children(run.run_id, run.warn)
        sampler = optuna_study.RepeatableTPE(self.settings.base.seed)
        self.optuna = optuna_study.open_study(study.folder, self.settings.name, sampler)
        first, space = self.settings.first_trials, self.settings.space
        optuna_study.restore(self.optuna, study.records(TRIALS), space, first)
        optuna_study.begin_with(self.optuna, self.settings.first_trials)
        self._began, self._commit = time.monotonic(), commit()

    def search(self) -> list[TrialRecord]:
        """Runs the trials that are left.

        Returns:
            All of them.

        Raises:
            TrainingError: every trial failed.
            Interrupted: by Ctrl-C or SIGTERM.
        """
        settings = self.settings
        records = self.study.records(TRIALS)
        slots = self._slots(settings.num_trials)
        scheduler = ray_tune.make_scheduler(settings.scheduler, settings.base, settings.space)
        source = ray_tune.StudySearch(
            self.optuna, settings.space, settings.base, settings.num_trials, records, scheduler
        )
        self.watcher.begin("trial", settings.num_trials, records, slots.at_once)
        self._run(TRIALS, records, source, scheduler, slots)
        records = self.study.records(TRIALS)
        if records and all(record.state == "failed" for record in records):
            raise TrainingError(
                f"All {len(records)} trials failed. The last one says: {records[-1].reason}"
            )
        return records

    def confirm(self, top: int, seeds: int) -> list[Repeated]:
        """Trains the best configurations and the first anew, on other pictures with other seeds.

        Args:
            top: how many configurations beside the first trial's.
            seeds: how often each.

        Returns:
            The configurations, the surest first.
        """
        best = worth_repeating(self.study.records(TRIALS), top)
        known = {record.number: record for record in self.study.records(CONFIRM)}
        wanted = {trial.number: self._repetitions(trial, seeds, known) for trial in best}
        records = [record for repeated in wanted.values() for record in repeated]
        slots = self._slots(4 * len(records))
        scheduler = ray_tune.make_scheduler("none", self.settings.base, self.settings.space)
        self.watcher.begin("repetition", len(records), records, slots.at_once)
        self._run(CONFIRM, records, ray_tune.Repeats(records), scheduler, slots)
        return rank_repeated(best, wanted)

    def _repetitions(
        self, trial: TrialRecord, seeds: int, known: dict[int, TrialRecord]
    ) -> list[TrialRecord]:
        """Repetition r of trial n has the number 100 n + r, whatever else is repeated."""
        first = self.settings.base.seed + 1
        numbers = [100 * trial.number + repetition for repetition in range(seeds)]
        return [
            known.get(number) or TrialRecord(number, trial.params, first + repetition, repetition)
            for repetition, number in enumerate(numbers)
        ]

    def began(self, part: str, record: TrialRecord) -> None:
        """A trial begins, or goes on."""
        self.study.save(part, record)
        self._show(part, record)
        self.watcher.trial(record, self.name_of(record))

    def changed(self, part: str, record: TrialRecord) -> None:
        """It has a new epoch, or is over: first on disk, then in MLflow, then in Optuna."""
        self.study.save(part, record)
        self._publish(part, record)
        if record.is_over:
            storage.clear(tune_trial.place_of(self.settings.storage, part, record.number))
        self.watcher.trial(record, self.name_of(record))

    def name_of(self, record: TrialRecord) -> str:
        """What a person calls the trial."""
        return trial_name(self.config_of(record))

    def config_of(self, record: TrialRecord) -> TrainConfig:
        """What the trial trains."""
        config = configure(self.settings.base, record.params, f"trial {record.number}")
        return replace(config, seed=record.seed)

    def _publish(self, part: str, record: TrialRecord) -> None:
        """Brings MLflow and Optuna up to date."""
        self.children.update(part, record)
        if part == TRIALS:
            optuna_study.tell(self.optuna, record.number, record)

    def _show(self, part: str, record: TrialRecord) -> None:
        """Makes the trial's run in MLflow, unless it is there."""
        repeated = f" s{record.seed}" if part == CONFIRM else ""
        self.children.begin(
            part,
            record,
            self.name_of(record) + repeated,
            flatten(to_dict(self.config_of(record))),
            {
                "study": self.settings.name,
                "fingerprint": self.settings.fingerprint,
                "pretrained": self.weights.pretrained,
                "commit": self._commit,
            },
        )

    def _run(
        self,
        part: str,
        records: list[TrialRecord],
        source: ray_tune.StudySearch | ray_tune.Repeats,
        scheduler: TrialScheduler,
        slots: ray_tune.Slots,
    ) -> None:
        for record in records:
            if record.is_over:  # An earlier attempt may have been killed before it was published.
                self._show(part, record)
                self._publish(part, record)
        # The time is that of the search; its winner is confirmed in any case.
        may_begin = self._may_begin if part == TRIALS else lambda: True
        source.prepare(part, self, slots.at_once, self.settings.base.epochs, may_begin)
        attempt = f"{part}_{datetime.datetime.now():%Y%m%d_%H%M%S_%f}"
        try:
            ray_tune.run(source, scheduler, self._spec(part, slots), slots, attempt)
        except Interrupted:
            self.children.abandon()
            raise
        finally:
            storage.clear(f"{self.settings.storage}/{attempt}")
        self.children.catch_up(self._show)

    def _may_begin(self) -> bool:
        budget_s = self.means.time_budget_s
        return budget_s is None or time.monotonic() - self._began < budget_s

    def _slots(self, num_trials: int) -> ray_tune.Slots:
        means = self.means
        return ray_tune.choose_slots(
            means.concurrency, means.workers_per_trial, means.gpus_per_worker, num_trials
        )

    def _spec(self, part: str, slots: ray_tune.Slots) -> tune_trial.Spec:
        settings, means = self.settings, self.means
        extent = self._extent(part)
        cuts = cuts_to_keep(self._cuts(), settings.base, extent)
        return tune_trial.Spec(
            base=settings.base,
            data=ray_cluster.readable(settings.data),
            fingerprint=settings.fingerprint,
            weights=self.weights,
            commit=self._commit,
            storage=ray_cluster.writable(settings.storage),
            workers=slots.workers,
            reuse=Reuse(folder=means.features, disk_gb=means.features_disk_gb, cuts=cuts),
            extent=extent,
        )

    def _cuts(self) -> list[int]:
        """Cuts that trials share; from a range of depths no two need be the same."""
        depths = self.settings.space.get("model.unfreeze_depth")
        if isinstance(depths, Range):
            return []
        searched = depths.values if depths else (self.settings.base.model.unfreeze_depth,)
        return [NUM_BLOCKS - depth for depth in searched]

    def _extent(self, part: str) -> Extent:
        """How much could be kept, and how often it would be read."""
        settings = self.settings
        levels = settings.space.get("augment.strength")
        strengths = 1
        if isinstance(levels, Choice):
            strengths = max(1, sum(level > 0 for level in levels.values))
        # Repetitions have seeds of their own, and a strength from a range is hardly met twice.
        shared = part == TRIALS and (levels is None or isinstance(levels, Choice))
        return Extent(
            train=len(self.dataset.split("train")),
            validation=len(self.dataset.split("validation")),
            side_px=self.dataset.preprocessing.side_px,
            disk_gb=self.means.features_disk_gb,
            value_bytes=4,
            runs=max(1, settings.num_trials // strengths) if shared else 1,
            strengths=strengths,
        )
