"""Runs a study's trials and confirmation runs, over any number of attempts, and records them."""

import datetime
import time
from dataclasses import dataclass, replace

import numpy as np

from drone.cluster import connection
from drone.cluster.schedulers import Pruner, make_pruner
from drone.cluster.searcher import FixedTrials, SampledTrials, StudySearcher, TrialSource
from drone.cluster.trial import TrialSpec, checkpoint_location
from drone.cluster.tune import TrialSlots, choose_slots, run_trials
from drone.commands import command
from drone.config import flatten, to_dict
from drone.data.dataset import DEVELOPMENT_SPLITS, Dataset
from drone.errors import Interrupted, TrainingError
from drone.evaluation.calibration import choose_unsure_threshold
from drone.model.weights import Weights
from drone.project import commit
from drone.search.domain import Choice, Range
from drone.search.sampler import Sampler
from drone.search.scorer import Scorer
from drone.search.scoring import HeldOut
from drone.search.space import apply_params, trial_name
from drone.search.stopping import Outlook, outlook
from drone.search.study import Part, Study, StudySpec, TrialRecord
from drone.search.summary import select_for_confirmation
from drone.storage import checkpoints
from drone.tracking.runs import TrackedRun
from drone.tracking.study_runs import TrialRuns
from drone.training.activation_cache.policy import cuts_to_cache, search_workload
from drone.training.activation_cache.store import CacheSpec
from drone.training.config import CalibrationConfig, TrainConfig, TrainOn
from drone.workflows.display import SearchProgress


@dataclass(frozen=True, kw_only=True)
class SearchResources:
    """Resources of a search; None uses what is available."""

    concurrency: int | None = None
    workers_per_trial: int = 1
    gpus_per_worker: float | None = None
    cache: CacheSpec
    time_budget_s: float | None = None
    """Seconds after which no trial starts."""

    until_sure: bool = True
    """Whether no trial starts when more of them are expected to gain less than the noise."""


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
        is_race = spec.scheduler == "race"
        self.scorer = self.confirmation_scorer = self._scorer_of(spec.folds, is_race)
        self._sampled_scorer = self._scorer_of(spec.folds, is_race)
        self.sampler = Sampler(
            study.folder,
            self.spec.name,
            self.spec.base,
            self.spec.space,
            self.spec.first_trials,
            self.spec.objective,
            # In a race most trials have one fold; only scores on the same images are comparable.
            spec.base.epochs * (1 if is_race else spec.folds),
            study.records("trials"),
        )
        self._start_s, self._commit = time.monotonic(), commit()
        self.outlook: Outlook | None = None
        """Why the study ended before its last trial, if it did."""

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
        pruner = make_pruner(spec.scheduler, spec.base, spec.space, self.scorer)
        recorder = _Recorder("trials", self, self.scorer)
        source = SampledTrials(
            self.sampler,
            spec,
            records,
            pruner,
            recorder,
            self.scorer,
            self._knows_enough,
            self._is_over,
        )
        self.progress.start("trial", spec.num_trials, records, slots.concurrency)
        self._run(recorder, records, source, pruner, slots)
        records = self.study.records("trials")
        if records and all(record.state == "failed" for record in records):
            raise TrainingError(
                f"All {len(records)} trials failed. The last one: {records[-1].reason}"
            )
        return records

    def confirm(self, num_configs: int, num_folds: int) -> list[TrialRecord]:
        """Trains the best configurations again, with another seed and other held-out images.

        Args:
            num_configs: How many configurations, besides the first trial's.
            num_folds: Number of folds that each of them is trained on.

        Returns:
            Their trials, numbered as in the search.
        """
        spec = self.spec
        trials = select_for_confirmation(self.study.records("trials"), num_configs, self.scorer)
        earlier = {record.number: record for record in self.study.records("confirm")}
        records = [
            earlier.get(trial.number)
            or TrialRecord(trial.number, trial.params, spec.base.seed + 1, num_folds)
            for trial in trials
        ]
        # choose_slots allows a quarter at a time, to learn from results; here nothing is learnt.
        slots = self._slots(4 * len(records))
        scorer = self.confirmation_scorer = self._scorer_of(num_folds)
        # Not pruned: configurations are compared by complete runs.
        pruner = make_pruner("none", spec.base, spec.space, scorer)
        recorder = _Recorder("confirm", self, scorer)
        self.progress.start("confirmation run", len(records), records, slots.concurrency)
        self._run(recorder, records, FixedTrials(records), pruner, slots)
        return records

    def _scorer_of(self, num_folds: int, is_race: bool = False) -> Scorer:
        held_out = HeldOut.of(self.dataset, num_folds)
        return Scorer(held_out, self.spec.objective, self.spec.base.epochs, is_race)

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
        pruner: Pruner,
        slots: TrialSlots,
    ) -> None:
        for record in records:
            if record.has_ended:  # An earlier attempt may have been killed before publishing it.
                self.create_mlflow_run(recorder.part, record)
                self.publish(recorder.part, record)
        searcher = StudySearcher(
            source,
            recorder,
            recorder.scorer,
            pruner,
            concurrency=slots.concurrency,
        )
        # Ray Tune's own folder, new for each attempt and deleted at its end: nothing resumes from
        # it.
        attempt = f"{recorder.part}_{datetime.datetime.now():%Y%m%d_%H%M%S_%f}"
        trial_spec = self._trial_spec(recorder.part, slots)
        resume = command("tune", resume=self.study.folder)
        try:
            run_trials(searcher, trial_spec, slots, attempt)
        except Interrupted as error:
            self.trial_runs.mark_killed()
            raise Interrupted(f"{error} Continue: {resume}") from error
        finally:
            checkpoints.delete_all(f"{self.spec.storage}/{attempt}")
        self.trial_runs.catch_up(self.create_mlflow_run, resume)

    def _knows_enough(self) -> bool:
        """Whether more trials would tell nothing; says so once."""
        if not self.resources.until_sure:
            return False
        if self.outlook:
            return True
        spec, num_more = self.spec, self.spec.num_trials - self.sampler.num_started
        # As the sampler saw them: a study that was killed later must come to the same answer.
        records = [record.after(self.sampler.num_epochs) for record in self.study.records("trials")]
        found = outlook(records, self._sampled_scorer, num_more, spec.folds)
        if found is None or not found.is_sure:
            return False
        self.outlook = found
        self.progress.message(found.sentence(spec.objective))
        return True

    def _is_over(self) -> bool:
        """Whether the time budget is used up: that of the search; its winner is confirmed yet."""
        budget_s = self.resources.time_budget_s
        return budget_s is not None and time.monotonic() - self._start_s >= budget_s

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
        num_train, num_validation = (len(self.dataset.rows(name)) for name in DEVELOPMENT_SPLITS)
        workload = search_workload(
            # Over all folds, every image is trained on.
            num_train=num_train if spec.folds == 1 else num_train + num_validation,
            num_validation=num_validation,
            side_px=self.dataset.preprocessing.side_px,
            disk_gb=cache.disk_gb,
            # Confirmation runs have a seed of their own, and few share views.
            num_trials=spec.num_trials * spec.folds if part == "trials" else 1,
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


def final_config(
    spec: StudySpec, winner: TrialRecord, scorer: Scorer, final_on: TrainOn
) -> TrainConfig:
    """Returns the configuration that a winner is trained with once more.

    Args:
        spec: Spec of the study.
        winner: Trial of the search or of the confirmation.
        scorer: Has scored it.
        final_on: Images to train on. With validation among them, calibration and last epoch are
            those of the predictions that were made out of fold.
    """
    config = apply_params(spec.base, winner.params, f"trial {winner.number}")
    score = scorer.score(winner)
    if final_on == "train" or score is None:
        return config
    threshold = choose_unsure_threshold(
        score.probs_MK.astype(np.float32), score.labels_M, scorer.held_out.classes
    )
    calibration = CalibrationConfig(temperature=score.temperature, unsure_below=threshold)
    return replace(config, train_on=final_on, stop_epoch=score.epoch, calibration=calibration)


class _Recorder:
    """Records the trials of a part: first on disk, then in MLflow, then in Optuna."""

    def __init__(self, part: Part, runner: StudyRunner, scorer: Scorer) -> None:
        self.part, self.scorer = part, scorer
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
        if record.has_ended:
            self.scorer.finish(record)
        runner.study.save(self.part, record)
        # After the file: MLflow and Optuna can be caught up from it, not the other way round.
        runner.publish(self.part, record)
        if record.has_ended:
            # Nothing resumes from them, and those of all trials would fill the storage.
            storage = runner.spec.storage
            checkpoints.delete_all(checkpoint_location(storage, self.part, record.number))
        runner.progress.trial(record, runner.name_of(record))
