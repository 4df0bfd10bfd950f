"""What follows a search: its winner is trained once more, evaluated on test and promoted."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from drone.config import differing, to_dict
from drone.errors import RunError
from drone.evaluation.limits import Limits
from drone.names import check_model_name
from drone.search.study import Study, StudySpec
from drone.tracking import registry, runs
from drone.training.config import TrainConfig
from drone.workflows import evaluation, promotion, training
from drone.workflows.display import Display
from drone.workflows.evaluation import EvaluationResult
from drone.workflows.promotion import PromotionResult
from drone.workflows.requests import EvaluateRequest
from drone.workflows.search_trials import SearchResources
from drone.workflows.training import Resources, RunSpec


@dataclass(frozen=True, kw_only=True)
class AfterSearch:
    """Steps after the trials."""

    confirm: tuple[int, int] = (3, 3)
    """Number of configurations to train again, and of seeds for each; 0 for none."""

    final: bool = True
    """Whether the winner is trained once more, evaluated on test, registered and promoted."""

    model_name: str = registry.DEFAULT_NAME

    def __post_init__(self) -> None:
        check_model_name(self.model_name, "--model-name")


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
    name = _final_name(spec, config)
    display.show("", f"Training the winner once more ({name})")
    run_id = _train_final(name, spec, config, resources, experiment, display)
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


def _final_name(spec: StudySpec, config: TrainConfig) -> str:
    """Returns the name of the final run, by which a resumed study recognises it.

    It depends only on the settings that differ from the defaults, so a setting that a later version
    adds does not change it, and on the study's run, since another study of the same name may have
    had other data.
    """
    changed = differing(to_dict(config), to_dict(TrainConfig()))
    text = json.dumps([changed, spec.run_id], sort_keys=True)
    return f"{spec.name}-final-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


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
