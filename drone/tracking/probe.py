"""A round trip to the tracking server: a run that every machine logs an artifact to."""

import os

from drone.tracking.failures import FAILURES as FAILURES

_EXPERIMENT = "doctor"


def start_run(uri: str | None) -> str | None:
    """Creates the run; None where the store is only used from this machine.

    Raises:
        One of FAILURES: The server does not answer.
    """
    # A local store is written by the process of the job alone, so no other machine needs it.
    if uri is None or not uri.startswith(("http://", "https://")):
        return None
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(_EXPERIMENT)
    number = experiment.experiment_id if experiment else client.create_experiment(_EXPERIMENT)
    return str(client.create_run(number, run_name=_EXPERIMENT).info.run_id)


def log_artifact(uri: str, run_id: str, name: str) -> None:
    """Logs a small artifact, from any machine."""
    # A server that is away must fail this check, not delay it: the defaults retry for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    import mlflow
    from mlflow.tracking import MlflowClient

    mlflow.set_tracking_uri(uri)
    MlflowClient(uri).log_text(run_id, name, f"{name}.txt")


def has_artifact(uri: str, run_id: str, name: str) -> bool:
    """Whether the artifact of that name has arrived."""
    from mlflow.tracking import MlflowClient

    return f"{name}.txt" in {item.path for item in MlflowClient(uri).list_artifacts(run_id)}


def delete_run(uri: str | None, run_id: str | None) -> None:
    """Ends and deletes the run, if there is one."""
    if run_id is None:
        return
    from mlflow.tracking import MlflowClient

    # Ended first: a run that is restored later must not look as if it were running.
    MlflowClient(uri).set_terminated(run_id)
    MlflowClient(uri).delete_run(run_id)
