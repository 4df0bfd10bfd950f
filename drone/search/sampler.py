"""Samples each trial with Optuna's TPE, from the results of earlier ones."""

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from drone.search.domain import Choice, Domain, Space
from drone.search.scoring import Objective, sign
from drone.search.space import suggest_params
from drone.search.study import TrialRecord
from drone.training.config import TrainConfig

DATABASE_FILE = "optuna.db"

_NUM_RESAMPLES = 50
_NUM_STARTUP_TRIALS = 10
"""Random trials, before the sampler has seen enough."""


@dataclass(frozen=True)
class Importance:
    """How much a setting decides whether a trial is a good one."""

    share: float
    """Share of 1 over all settings."""

    low: float
    high: float
    """Bounds of the 95 % interval over resampled trials."""


class _RepeatableTPE(BaseSampler):
    """A multivariate TPE sampler whose draws depend on the seed, the trial and the trials before.

    Optuna's own sampler draws from one sequence of random numbers, which would restart when a study
    is resumed in another process. Here every trial has its own sequence.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def _sampler(self, *key: object) -> TPESampler:
        text = repr((self._seed, *key)).encode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(
                multivariate=True,
                group=True,
                constant_liar=True,
                n_startup_trials=_NUM_STARTUP_TRIALS,
                # numpy takes seeds of 32 bits.
                seed=int.from_bytes(hashlib.sha256(text).digest()[:4], "big"),
            )

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Returns the settings to sample together: those that earlier trials had in common."""
        sampler = self._sampler(trial.number)
        space = sampler.infer_relative_search_space(study, trial)
        # sample_relative needs this very sampler: it holds the groups of settings just found.
        self._relative = (trial.number, sampler)
        return space

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """Returns values of the settings that are sampled together."""
        number, sampler = self._relative
        assert number == trial.number
        return sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Returns the value of a setting that was not sampled with the others."""
        sampler = self._sampler(trial.number, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)


class Sampler:
    """Suggests trials; its database is rebuilt from the study's own files at each start."""

    def __init__(
        self,
        folder: Path,
        name: str,
        base: TrainConfig,
        space: Space,
        first_trials: Sequence[Mapping[str, Any]],
        objective: Objective,
        num_epochs: int,
        records: Sequence[TrialRecord],
    ) -> None:
        """Creates the sampler and replays the records to it.

        Args:
            folder: Folder of the study; the database is written there for Optuna's own tools.
            name: Name of the study.
            base: Settings of all trials; its seed is the sampler's.
            space: Domains of the searched settings.
            first_trials: Parameters of the trials before the sampler's own.
            objective: What the scores are.
            num_epochs: Number of epochs after which it learns a trial's score; what follows is
                not learnt.
            records: All trials so far.
        """
        self._base, self._space, self.num_epochs = base, space, num_epochs
        self._running: dict[int, Trial] = {}
        self._reported: dict[int, int] = {}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # The trials' files are the truth: a database that was lost, damaged or ahead of them when
        # the study was killed makes no difference.
        file = folder.resolve() / DATABASE_FILE
        file.unlink(missing_ok=True)
        self.study = optuna.create_study(
            storage=f"sqlite:///{file}",
            study_name=name,
            sampler=_RepeatableTPE(base.seed),
            direction="maximize" if sign(objective) > 0 else "minimize",
        )
        self.num_started = 0
        self._replay(records)
        for params in first_trials[self.num_started :]:
            self.study.enqueue_trial(dict(params))

    def _replay(self, records: Sequence[TrialRecord]) -> None:
        """Adds the records in the order of their numbers, which Optuna counts by itself."""
        by_number = {record.number: record for record in records}
        for number in range(max(by_number, default=-1) + 1):
            record = by_number.get(number)
            if record is None:  # Its file was lost.
                self.study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
                self.num_started += 1
            elif self._is_known(record):
                self.study.add_trial(self._frozen(record))
                self.num_started += 1
            else:
                # Added as running: the sampler avoids configurations that are being tried.
                self.study.enqueue_trial(dict(record.params))
                self.suggest()
                self.tell(record)

    def _frozen(self, record: TrialRecord) -> FrozenTrial:
        state, scores = self._state(record), self._scores(record)
        # Of a pruned trial Optuna itself stores this as the value too.
        value = scores[max(scores)] if scores and state is not TrialState.FAIL else None
        return optuna.trial.create_trial(
            state=state,
            value=value,
            params=record.params,
            distributions={
                name: _distribution(self._space[name], param)
                for name, param in record.params.items()
            },
            intermediate_values=scores,
        )

    def suggest(self) -> tuple[int, dict[str, Any]]:
        """Returns number and parameters of the next trial; settings without effect are left out."""
        trial = self.study.ask()
        params = suggest_params(self._space, self._base, trial)
        self._running[trial.number] = trial
        self.num_started += 1
        return trial.number, params

    def tell(self, record: TrialRecord) -> None:
        """Reports a trial's new epochs to Optuna and, once it is known, its outcome.

        A trial that stopped itself counts with its score; one that failed says nothing about its
        settings. Calling it again is harmless.
        """
        trial = self._running.get(record.number)
        if trial is None:
            return
        scores = self._scores(record)
        for step, score in scores.items():
            if step > self._reported.get(record.number, 0):
                trial.report(score, step)
                self._reported[record.number] = step
        if self._is_known(record):
            del self._running[record.number]
            state = self._state(record)
            # Optuna takes the score of a pruned trial from its reports, and refuses another.
            scored = state is TrialState.COMPLETE
            self.study.tell(trial, scores[max(scores)] if scored else None, state)

    def _is_known(self, record: TrialRecord) -> bool:
        """Whether the trial has ended, or has come as far as is learnt from."""
        return record.has_ended or len(record.history) >= self.num_epochs

    def _state(self, record: TrialRecord) -> TrialState:
        # Without an epoch, or with a score that is no number, a trial says nothing.
        if record.state == "failed" or not self._scores(record):
            return TrialState.FAIL
        is_short = len(record.history) < self.num_epochs
        return TrialState.PRUNED if record.state == "pruned" and is_short else TrialState.COMPLETE

    def _scores(self, record: TrialRecord) -> dict[int, float]:
        """Returns the trial's score after each epoch, counted over all folds.

        Scores that are no numbers are left out: Optuna refuses them.
        """
        scores = enumerate(
            (float(entry["metrics"]["score"]) for entry in record.history[: self.num_epochs]),
            start=1,
        )
        return {step: score for step, score in scores if math.isfinite(score)}

    def importances(self) -> dict[str, Importance]:
        """Returns how much each setting decides whether a trial is a good one, as shares of 1.

        PED-ANOVA (Watanabe et al. 2023), Optuna's default, over all trials that have a score. The
        intervals are over resampled trials. Empty if too few trials ended.
        """
        trials = [
            # Those that were pruned are the bad ones, without which nothing would stand out.
            optuna.trial.create_trial(
                value=trial.value, params=trial.params, distributions=trial.distributions
            )
            for trial in self.study.get_trials()
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and trial.value is not None
        ]
        shares, direction = _importances(trials, self.study.direction), self.study.direction
        generator = np.random.default_rng(0)
        draws = [generator.integers(len(trials), size=len(trials)) for _ in range(_NUM_RESAMPLES)]
        resampled = [_importances([trials[at] for at in drawn], direction) for drawn in draws]
        intervals = {
            name: np.quantile([other.get(name, 0.0) for other in resampled], [0.025, 0.975])
            for name in shares
        }
        return {
            name: Importance(share, *map(float, intervals[name])) for name, share in shares.items()
        }


def _importances(trials: Sequence[FrozenTrial], direction: StudyDirection) -> dict[str, float]:
    study = optuna.create_study(direction=direction)
    study.add_trials(trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The report says itself which settings are rare.
        try:
            return optuna.importance.get_param_importances(study, normalize=True)
        except (RuntimeError, ValueError):
            return {}


def _distribution(domain: Domain, value: Any) -> BaseDistribution:
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    if isinstance(value, int):
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)
