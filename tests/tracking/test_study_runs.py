"""The runs of a study's trials in MLflow, over interruptions and outages."""

import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from drone.tracking.runs import TrackedRun
from drone.tracking.study_runs import TrialRuns
from tests.search.studies import trial_record


def only_child(parent_run_id: str) -> Run:
    experiment = MlflowClient().get_run(parent_run_id).info.experiment_id
    (run,) = MlflowClient().search_runs(
        [experiment], f"tags.`mlflow.parentRunId` = '{parent_run_id}'"
    )
    return run


def test_a_trial_whose_settings_could_not_be_logged_has_one_run_with_them(
    parent_run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MlflowException("no answer")

    trial = trial_record(0, [2.0], "finished")
    trial.usage = {"resource/wall_s": 2.0}
    log_params = TrackedRun.log_params
    monkeypatch.setattr(TrackedRun, "log_params", fail)
    killed = TrialRuns(parent_run_id, lambda _: None)
    killed.start("trials", trial, "d0", {"seed": 0}, {})
    killed.update("trials", trial)
    assert only_child(parent_run_id).info.status == "RUNNING"
    monkeypatch.setattr(TrackedRun, "log_params", log_params)
    # Killed after the final metrics were logged, and before the run was ended.
    TrackedRun(only_child(parent_run_id).info.run_id, "d0", fail, set()).log_final(
        {"score": trial.score, **trial.usage}
    )
    resumed = TrialRuns(parent_run_id, lambda _: None)
    for trial_runs in (killed, resumed):
        trial_runs.start("trials", trial, "d0", {"seed": 0}, {})
    resumed.update("trials", trial)
    run = only_child(parent_run_id)
    assert run.info.status == "FINISHED" and run.data.params == {"seed": "0"}
    for name in ("score", "score_se", "accuracy", "resource/wall_s"):
        assert len(MlflowClient().get_metric_history(run.info.run_id, name)) == 1
