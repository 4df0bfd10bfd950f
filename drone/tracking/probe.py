"""A round trip to the tracking server: an artifact that is logged and listed again."""

from mlflow.tracking import MlflowClient

from drone.tracking.failures import FAILURES as FAILURES

_EXPERIMENT = "doctor"
_ARTIFACT = "probe.txt"


def is_server(uri: str) -> bool:
    """Whether the store is a server, and not a file of the job's machine."""
    return uri.startswith(("http://", "https://"))


def round_trip() -> bool:
    """Whether an artifact that is logged to the connected store arrives.

    Raises:
        One of FAILURES: The store does not answer, or refuses.
    """
    client = MlflowClient()
    experiment = client.get_experiment_by_name(_EXPERIMENT)
    number = experiment.experiment_id if experiment else client.create_experiment(_EXPERIMENT)
    run_id = client.create_run(number, run_name=_EXPERIMENT).info.run_id
    try:
        client.log_text(run_id, _EXPERIMENT, _ARTIFACT)
        return _ARTIFACT in {item.path for item in client.list_artifacts(run_id)}
    finally:
        # Ended first: a run that is restored later must not look as if it were running. Deleted,
        # or it would be listed among the user's runs.
        client.set_terminated(run_id)
        client.delete_run(run_id)
