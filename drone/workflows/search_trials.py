"""Runs a study's trials and confirmation runs, over any number of attempts, and records them."""

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from drone.cluster import connection
from drone.cluster.schedulers import Scheduler, make_scheduler
from drone.cluster.searcher import FixedTrials, SampledTrials, StudySearcher, TrialSource
from drone.cluster.trial import TrialSpec, checkpoint_location
from drone.cluster.tune import TrialSlots, choose_slots, run_trials
from drone.commands import command
from drone.config import flatten, to_dict
from drone.data.dataset import Dataset
from drone.errors import Interrupted, TrainingError
from drone.model.weights import Weights
from drone.project import commit
from drone.search.domain import Choice, Range
from drone.search.sampler import Sampler
from drone.search.space import apply_params, trial_name
from drone.search.study import Part, Study, StudySpec, TrialRecord
from drone.search.summary import ConfirmedConfig, rank_confirmed, select_for_confirmation
from drone.storage import checkpoints
from drone.tracking.runs import TrackedRun
from drone.tracking.study_runs import TrialRuns
from drone.training.activation_cache.policy import cuts_to_cache, search_workload
from drone.training.activation_cache.store import CacheSpec
from drone.training.config import TrainConfig
from drone.workflows.display import SearchProgress

_NUM_FOLDS = 5
"""Folds of the confirmation runs."""


@dataclass(frozen=True, kw_only=True)
class SearchResources:
    """Resources of a search; None uses what is available."""

    concurrency: int | None = None
    workers_per_trial: int = 1
    gpus_per_worker: float | None = None
    cache: CacheSpec
    time_budget_s: float | None = None
    """Seconds after which no trial starts."""


class StudyRunner:
    """Runs a study; Ray must be connected."""

    def __init__(
        self,
        study: Study,
        spec: StudySpec,
        run: TrackedRun,
        dataset: Dataset,
        weights: Weights,
        resources: SearchResources,
        progress: SearchProgress,
    ) -> None:
        """Resumes the study from its trials on disk.

        Args:
            study: Folder of the study.
            spec: Its spec.
            run: The parent run.
            dataset: Data set of the study.
            weights: Weights that the trials start from.
            resources: What the trials may use.
            progress: Shows the trials.
        """
        self.study, self.spec = study, spec
        self.dataset, self.weights, self.resources = dataset, weights, resources
        self.progress = progress
        self._run_of_study = run
        self.trial_runs = TrialRuns(run.run_id, run.warn)
        self.sampler = Sampler(
            study.folder,
            self.spec.name,
            self.spec.base,
            self.spec.space,
            self.spec.first_trials,
            study.records("trials"),
        )
        self._start_s, self._commit = time.monotonic(), commit()

    def search(self) -> list[TrialRecord]:
        """Runs the trials that are left.

        Returns:
            All trials of the study.

        Raises:
            TrainingError: Every trial failed.
            Interrupted: Stopped by Ctrl-C or SIGTERM.
        """
        spec, records = self.spec, self.study.records("trials")
        slots = self._slots(spec.num_trials)
        scheduler = make_scheduler(spec.scheduler, spec.base, spec.space)
        recorder = _Recorder("trials", self)
        source = SampledTrials(self.sampler, spec, records, scheduler, recorder)
        self.progress.start("trial", spec.num_trials, records, slots.concurrency)
        self._run(recorder, records, source, scheduler, slots, self._within_budget)
        records = self.study.records("trials")
        if records and all(record.state == "failed" for record in records):
            raise TrainingError(
                f"All {len(records)} trials failed. The last one: {records[-1].reason}"
            )
        return records

    def confirm(self, num_configs: int, num_seeds: int) -> list[ConfirmedConfig]:
        """Trains the best configurations again, with other seeds and other validation images.

        Args:
            num_configs: How many configurations, besides the first trial's.
            num_seeds: How often each of them is trained.

        Returns:
            The configurations, best first.
        """
        spec = self.spec
        trials = select_for_confirmation(self.study.records("trials"), num_configs)
        earlier = {record.number: record for record in self.study.records("confirm")}
        runs = {
            trial.number: self._confirmation_runs(trial, num_seeds, earlier) for trial in trials
        }
        records = [record for records_of_trial in runs.values() for record in records_of_trial]
        # choose_slots allows a quarter at a time, to learn from results; here nothing is learnt.
        slots = self._slots(4 * len(records))
        # Not pruned: configurations are compared by complete runs.
        scheduler = make_scheduler("none", spec.base, spec.space)
        recorder = _Recorder("confirm", self)
        self.progress.start("confirmation run", len(records), records, slots.concurrency)
        # The time budget is that of the search; its winner is confirmed in any case.
        self._run(recorder, records, FixedTrials(records), scheduler, slots, lambda: True)
        return rank_confirmed(trials, runs)

    def _confirmation_runs(
        self, trial: TrialRecord, num_seeds: int, earlier: dict[int, TrialRecord]
    ) -> list[TrialRecord]:
        """Returns the runs of a trial; run r of trial n has the number 100 n + r."""
        first_seed = self.spec.base.seed + 1
        # Fixed, so that a resumed study finds its runs even if other configurations are best by
        # now.
        numbers = [100 * trial.number + run for run in range(num_seeds)]
        return [
            # Run r has the same seed and images for every configuration: they are compared in
            # blocks.
            earlier.get(number)
            or TrialRecord(number, trial.params, first_seed + run, (run % _NUM_FOLDS, _NUM_FOLDS))
            for run, number in enumerate(numbers)
        ]

    def name_of(self, record: TrialRecord) -> str:
        """Returns a short name of the trial."""
        return trial_name(self.config_of(record))

    def config_of(self, record: TrialRecord) -> TrainConfig:
        """Returns the configuration that the trial trains."""
        config = apply_params(self.spec.base, record.params, f"trial {record.number}")
        return replace(config, seed=record.seed)

    def create_mlflow_run(self, part: Part, record: TrialRecord) -> None:
        """Creates the trial's run in MLflow, unless it exists."""
        suffix = f" s{record.seed}" if part == "confirm" else ""
        self.trial_runs.start(
            part,
            record,
            self.name_of(record) + suffix,
            flatten(to_dict(self.config_of(record))),
            {
                "study": self.spec.name,
                "fingerprint": self.spec.fingerprint,
                "pretrained": self.weights.pretrained,
                "commit": self._commit,
            },
        )

    def publish(self, part: Part, record: TrialRecord) -> None:
        """Updates MLflow, then Optuna, with a trial.

        Raises:
            LockedError: Another process has taken the study over.
        """
        self._run_of_study.check_lease()
        self.trial_runs.update(part, record)
        if part == "trials":
            self.sampler.tell(record)

    def _run(
        self,
        recorder: "_Recorder",
        records: list[TrialRecord],
        source: TrialSource,
        scheduler: Scheduler,
        slots: TrialSlots,
        may_start: Callable[[], bool],
    ) -> None:
        for record in records:
            if record.has_ended:  # An earlier attempt may have been killed before publishing it.
                self.create_mlflow_run(recorder.part, record)
                self.publish(recorder.part, record)
        searcher = StudySearcher(
            source,
            recorder,
            concurrency=slots.concurrency,
            epochs=self.spec.base.epochs,
            may_start=may_start,
        )
        # Ray Tune's own folder, new for each attempt and deleted at its end: nothing resumes from
        # it.
        attempt = f"{recorder.part}_{datetime.datetime.now():%Y%m%d_%H%M%S_%f}"
        trial_spec = self._trial_spec(recorder.part, slots)
        resume = command("tune", resume=self.study.folder)
        try:
            run_trials(searcher, scheduler, trial_spec, slots, attempt)
        except Interrupted as error:
            self.trial_runs.mark_killed()
            raise Interrupted(f"{error} Continue: {resume}") from error
        finally:
            checkpoints.delete_all(f"{self.spec.storage}/{attempt}")
        self.trial_runs.catch_up(self.create_mlflow_run, resume)

    def _within_budget(self) -> bool:
        budget_s = self.resources.time_budget_s
        return budget_s is None or time.monotonic() - self._start_s < budget_s

    def _slots(self, num_trials: int) -> TrialSlots:
        resources = self.resources
        return choose_slots(
            resources.concurrency,
            resources.workers_per_trial,
            resources.gpus_per_worker,
            num_trials,
        )

    def _trial_spec(self, part: Part, slots: TrialSlots) -> TrialSpec:
        spec, cache = self.spec, self.resources.cache
        strengths = spec.space.get("augment.strength", Choice((spec.base.augment.strength,)))
        depths = spec.space.get("model.unfreeze_depth", Choice((spec.base.model.unfreeze_depth,)))
        workload = search_workload(
            num_train=len(self.dataset.split("train")),
            num_validation=len(self.dataset.split("validation")),
            side_px=self.dataset.preprocessing.side_px,
            disk_gb=cache.disk_gb,
            # Confirmation runs have seeds of their own, and share no views.
            num_trials=spec.num_trials if part == "trials" else 1,
            strengths=None if isinstance(strengths, Range) else strengths.values,
        )
        choices = () if isinstance(depths, Range) else depths.values
        return TrialSpec(
            base=spec.base,
            data=connection.readable_uri(spec.data),
            fingerprint=spec.fingerprint,
            weights=self.weights,
            commit=self._commit,
            storage=connection.writable_uri(spec.storage),
            workers=slots.workers,
            cache=replace(cache, cuts=cuts_to_cache(choices, spec.base, workload)),
            workload=workload,
        )


class _Recorder:
    """Records the trials of a part: first on disk, then in MLflow, then in Optuna."""

    def __init__(self, part: Part, runner: StudyRunner) -> None:
        self.part = part
        self._runner = runner

    def trial_started(self, record: TrialRecord) -> None:
        """Records that a trial starts, or is resumed."""
        runner = self._runner
        runner.study.save(self.part, record)
        runner.create_mlflow_run(self.part, record)
        runner.progress.trial(record, runner.name_of(record))

    def trial_updated(self, record: TrialRecord) -> None:
        """Records that a trial has a new epoch, or has ended."""
        runner = self._runner
        runner.study.save(self.part, record)
        # After the file: MLflow and Optuna can be caught up from it, not the other way round.
        runner.publish(self.part, record)
        if record.has_ended:
            # Nothing resumes from them, and those of all trials would fill the storage.
            storage = runner.spec.storage
            checkpoints.delete_all(checkpoint_location(storage, self.part, record.number))
        runner.progress.trial(record, runner.name_of(record))
