"""Runs in MLflow."""

import os

import pytest
from mlflow.tracking import MlflowClient
from mlflow.utils.model_utils import env_var_tracker

from drone.errors import RunError
from drone.tracking import runs


def test_resuming_a_run_that_the_store_does_not_have_names_the_store(parent_run_id: str) -> None:
    MlflowClient().delete_run(parent_run_id)
    restore = "Restore it: MLFLOW_TRACKING_URI=sqlite"
    for run_id, message in (
        (parent_run_id, rf"\({parent_run_id}\) was deleted\. {restore}"),
        ("0" * 32, r"Cannot resume run 0+ in sqlite:.*mlflow\.db: .*MLFLOW_TRACKING_URI"),
    ):
        with (
            pytest.raises(RunError, match=message),
            runs.start_run("study", lambda _: None, run_id),
        ):
            pass


def test_mlflow_does_not_record_which_variables_other_threads_read() -> None:
    """It would fail if the thread that renews a run's lease read one while a model is logged."""
    with env_var_tracker() as recorded:
        assert os.environ.get("PATH") == os.environ["PATH"]
    assert not recorded
