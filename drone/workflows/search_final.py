"""What follows a search: its winner is trained once more, evaluated on test and promoted."""

from dataclasses import dataclass
from typing import Any

from drone.commands import command
from drone.errors import Interrupted, ResumableError, RunError
from drone.evaluation.limits import Limits
from drone.names import check_model_name
from drone.search.study import Study, StudySpec
from drone.tracking import registry, runs
from drone.training.config import TrainConfig, TrainOn
from drone.workflows import evaluation, promotion, training
from drone.workflows.display import Display
from drone.workflows.evaluation import EvaluationResult
from drone.workflows.promotion import PromotionResult
from drone.workflows.requests import EvaluateRequest
from drone.workflows.run_spec import RunSpec
from drone.workflows.search_trials import SearchResources
from drone.workflows.training import Resources


@dataclass(frozen=True, kw_only=True)
class AfterSearch:
    """Steps after the trials."""

    confirm: tuple[int, int] | None = None
    """Number of configurations to train again, and of folds for each; 0 for none. None trains
    three on three folds again if trials have a single fold, else none."""

    final: bool = True
    """Whether the winner is trained once more, evaluated on test, registered and promoted."""

    final_on: TrainOn | None = None
    """Images that the winner is trained on; None adds validation if trials have several folds."""

    model_name: str = registry.DEFAULT_NAME

    def __post_init__(self) -> None:
        check_model_name(self.model_name, "--model-name")


def default_confirmation(num_folds: int) -> tuple[int, int]:
    """Returns the confirmation of a study: needless where trials have several folds."""
    return (3, 3) if num_folds == 1 else (0, 0)


def default_final_on(num_folds: int) -> TrainOn:
    """Returns the images that the final model is trained on."""
    return "train" if num_folds == 1 else "train+validation"


@dataclass(frozen=True)
class FinalModel:
    """The winner, trained once more."""

    run_id: str
    scores: dict[str, Any]
    """Test metrics, as metrics.json has them."""

    evaluation: EvaluationResult | None
    """None if an earlier attempt evaluated it."""

    promotion: PromotionResult | None
    """None if it could not be compared with the champion."""


def finish(
    study: Study,
    spec: StudySpec,
    config: TrainConfig,
    resources: SearchResources,
    after: AfterSearch,
    experiment: str,
    display: Display,
) -> FinalModel:
    """Trains the winner, evaluates it on test, registers and promotes it; each once."""
    name = spec.final_name(config)
    display.show("", f"Training the winner once more ({name})")
    try:
        run_id = _train_final(name, spec, config, resources, experiment, display)
    except (Interrupted, ResumableError) as error:
        # Not of the run alone, which would be neither evaluated nor registered.
        resume = command("tune", resume=study.folder)
        raise type(error)(f"{error.__cause__ or error} Continue the study: {resume}") from error
    # Test is read once: a resumed study takes the result of the earlier attempt.
    scores, evaluated = evaluation.test_result(run_id, spec.fingerprint, own=True), None
    if scores is None:
        request = EvaluateRequest(run=run_id, out=study.folder / "reports", experiment=experiment)
        evaluated = evaluation.evaluate(request, display)
        scores = evaluated.as_dict()
    promoted = None
    try:
        promoted = promotion.promote(
            run_id, after.model_name, Limits(), experiment=experiment, display=display
        )
    except RunError as error:  # No comparison is an outcome of the study, not its failure.
        display.warn(str(error))
    return FinalModel(run_id, scores, evaluated, promoted)


def _train_final(
    name: str,
    spec: StudySpec,
    config: TrainConfig,
    resources: SearchResources,
    experiment: str,
    display: Display,
) -> str:
    """Trains the winner, or resumes its training; returns the run's id."""
    existing = runs.find_by_name(name)
    if existing is not None and existing.info.status == "FINISHED":
        return str(existing.info.run_id)
    workers = resources.workers_per_trial if resources.workers_per_trial > 1 else None
    # The cluster was checked before the trials.
    training_resources = Resources(num_workers=workers, cache=resources.cache, check_cluster=False)
    if existing is not None:
        return training.resume(
            existing.info.run_id, training_resources, experiment=experiment, display=display
        ).run_id
    run_spec = RunSpec(config=config, data=spec.data, weights=spec.weights, storage=spec.storage)
    return training.train(
        run_spec, training_resources, name=name, experiment=experiment, display=display
    ).run_id
