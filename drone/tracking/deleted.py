"""Runs and experiments that were deleted, which MLflow keeps until `mlflow gc`."""

import mlflow
from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from drone.commands import quoted
from drone.errors import RunError

_DELETED = "deleted"


def check_experiment(experiment: Experiment) -> None:
    """Fails if an experiment was deleted.

    Raises:
        RunError: It was; has the command that restores it.
    """
    if experiment.lifecycle_stage == _DELETED:
        raise RunError(
            f"The experiment {experiment.name!r} was deleted. Restore it and its runs, or choose "
            f"another --experiment: {_restore('experiments', experiment.experiment_id)}"
        )


def check_run(run: Run) -> None:
    """Fails if a run, or its experiment, was deleted.

    Raises:
        RunError: It was; has the command that restores it.
    """
    name = f"Run {run.info.run_name} ({run.info.run_id})"
    experiment = MlflowClient().get_experiment(run.info.experiment_id)
    # First: a run that is restored alone could not be written to.
    if experiment.lifecycle_stage == _DELETED:
        raise RunError(
            f"{name} was deleted with its experiment {experiment.name!r}. Restore both: "
            f"{_restore('experiments', experiment.experiment_id)}"
        )
    if run.info.lifecycle_stage == _DELETED:
        raise RunError(f"{name} was deleted. Restore it: {_restore('runs', run.info.run_id)}")


def resume_advice(run_id: str) -> str:
    """Returns what to do about a run that cannot be resumed.

    Raises:
        RunError: It was deleted; has the command that restores it.
    """
    client = MlflowClient()
    try:
        run = client.get_run(run_id)
    except MlflowException:
        return (
            "Resume in the folder that it was started in, or set its store with "
            "MLFLOW_TRACKING_URI."
        )
    check_run(run)
    name = client.get_experiment(run.info.experiment_id).name
    return f"It belongs to the experiment {name}: add --experiment {quoted(name)}"


def _restore(kind: str, number: str) -> str:
    """Returns the command that restores a run or an experiment of the connected store."""
    flag = {"runs": "--run-id", "experiments": "--experiment-id"}[kind]
    # The store is named, since MLflow's own command has another default.
    uri = quoted(mlflow.get_tracking_uri())
    return f"MLFLOW_TRACKING_URI={uri} mlflow {kind} restore {flag} {quoted(number)}"
