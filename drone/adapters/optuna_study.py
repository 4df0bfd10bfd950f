"""Optuna: what the next trial tries, given those before it."""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import optuna.visualization.matplotlib as visualization
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DatabaseError

from drone.errors import RunError
from drone.search.space import Choice, Domain, Space
from drone.search.study import TrialRecord

FILE = "optuna.db"
STARTUP_TRIALS = 10
"""Random ones, before the sampler has seen enough."""


class RepeatableTPE(BaseSampler):
    """A multivariate TPE sampler whose draws depend on the seed, the trial and the trials before.

    Optuna's own goes through one sequence of random numbers, which a study that goes on in
    another process would begin anew. Here every trial has its own.
    """

    def __init__(self, seed: int) -> None:
        """Takes the seed of the study."""
        self.seed = seed

    def _sampler(self, *what: object) -> TPESampler:
        text = repr((self.seed, *what)).encode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(
                multivariate=True,
                group=True,
                constant_liar=True,
                n_startup_trials=STARTUP_TRIALS,
                seed=int.from_bytes(hashlib.sha256(text).digest()[:4], "big"),
            )

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The settings that are drawn together: all of those that trials had in common."""
        sampler = self._sampler(trial.number)
        space = sampler.infer_relative_search_space(study, trial)
        self._relative = (trial.number, sampler)
        return space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values of those."""
        number, sampler = self._relative
        assert number == trial.number
        return sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The value of one setting that was not drawn with the others."""
        sampler = self._sampler(trial.number, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)


def storage(folder: Path) -> optuna.storages.BaseStorage:
    """Optuna's database in a study's folder."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.storages.RDBStorage(f"sqlite:///{folder.resolve() / FILE}")


def open_study(folder: Path, name: str, sampler: BaseSampler) -> Study:
    """The study in a folder, made if it is not there.

    Raises:
        RunError: its database cannot be read.
    """
    try:
        study = optuna.create_study(
            storage=storage(folder),
            study_name=name,
            sampler=sampler,
            direction="maximize",
            load_if_exists=True,
        )
        study.get_trials(deepcopy=False)
    except (DatabaseError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise RunError(
            f"{folder / FILE} cannot be read: {reason}. If it is damaged, delete it, then "
            f"--resume: it is made anew from the trials' files."
        ) from error
    return study


def restore(
    study: Study,
    records: Sequence[TrialRecord],
    space: Space,
    wanted: Sequence[Mapping[str, Any]],
) -> None:
    """Tells a database that was lost of the trials in the study's files.

    Args:
        study: changed only if it knows no trials.
        records: of all trials so far.
        space: what is searched.
        wanted: settings of the first trials; those that have not begun are put in line.
    """
    if not records or study.get_trials(deepcopy=False):
        return
    known = {record.number: record for record in records}
    for number in range(max(known) + 1):
        if number not in known:  # Its file was lost as well.
            study.add_trial(optuna.create_trial(state=TrialState.FAIL))
            continue
        params = known[number].params
        study.add_trial(
            optuna.create_trial(
                state=TrialState.RUNNING,
                params=params,
                distributions={n: _distribution(space[n], value) for n, value in params.items()},
            )
        )
        tell(study, number, known[number])
    for settings in wanted[max(known) + 1 :]:
        study.enqueue_trial(dict(settings))


def _distribution(domain: Domain, value: Any) -> BaseDistribution:
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    if isinstance(value, int):
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def unfinished(study: Study) -> list[FrozenTrial]:
    """Trials that were begun and have no outcome."""
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def begin_with(study: Study, wanted: Sequence[Mapping[str, Any]]) -> None:
    """Puts trials of given settings first, if the study has none yet."""
    if not study.get_trials(deepcopy=False):
        for params in wanted:
            study.enqueue_trial(dict(params))


def tell(study: Study, number: int, record: TrialRecord) -> None:
    """Brings a trial up to date: its epochs and, if it is over, its outcome. Harmless if repeated.

    A trial that ended for a reason of its own counts with the score that it had; one that failed
    says nothing of its settings.
    """
    frozen = study.get_trials(deepcopy=False)[number]
    if frozen.state.is_finished():
        return
    trial = optuna.trial.Trial(study, frozen._trial_id)
    for entry, value in zip(record.history, record_values(record), strict=True):
        if entry["epoch"] not in frozen.intermediate_values:
            trial.report(value, entry["epoch"])
    if record.state == "failed":
        study.tell(number, state=TrialState.FAIL)
    elif record.state == "pruned":
        study.tell(number, state=TrialState.PRUNED)
    elif record.is_over:
        study.tell(number, record.objective)


def record_values(record: TrialRecord) -> list[float]:
    """The trial's score after each of its epochs."""
    return [float(entry["metrics"]["objective"]) for entry in record.history]


def importances(study: Study) -> Mapping[str, float]:
    """How much each setting decides whether a trial is among the good ones, as shares of 1.

    PED-ANOVA (Watanabe et al. 2023), Optuna's default; empty if too few trials ended.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That a setting was rarely used is said elsewhere.
        try:
            return optuna.importance.get_param_importances(study, normalize=True)
        except (RuntimeError, ValueError):
            return {}


def draw(study: Study, folder: Path) -> list[Path]:
    """Optuna's plots of a study as PNG files; those that its trials are too few for are left out.

    Returns:
        The files, in an order to show them.
    """
    import matplotlib.pyplot as pyplot

    drawn = []
    plots: dict[str, Callable[[Study], Any]] = {
        "optimization_history": visualization.plot_optimization_history,
        "parameter_importances": visualization.plot_param_importances,
        "parallel_coordinates": visualization.plot_parallel_coordinate,
        "slices": visualization.plot_slice,
    }
    for name, plot in plots.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of an interface that is called experimental.
            try:
                axes = plot(study)
            except (RuntimeError, ValueError, ZeroDivisionError):
                continue
            figure = np.ravel(axes)[0].figure
            if name == "slices":
                figure.set_size_inches(3.2 * len(np.ravel(axes)), 3.6)
            target = folder / f"{name}.png"
            figure.savefig(target, dpi=110, bbox_inches="tight", facecolor="white")
            pyplot.close(figure)
        drawn.append(target)
    return drawn
