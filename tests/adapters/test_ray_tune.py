"""What ends trials, what lets them begin, what MLflow hears of them; without a Ray that runs."""

import json
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from ray.tune.search import Searcher

from drone.adapters import mlflow_registry as registry
from drone.adapters import mlflow_tracking as tracking
from drone.adapters import optuna_study, ray_tune, tune_trial
from drone.adapters.mlflow_study import Children
from drone.adapters.mlflow_tracking import TrackedRun
from drone.adapters.ray_tune import make_scheduler, recall
from drone.config import override
from drone.errors import RunError
from drone.presets import get
from drone.search.space import DEFAULT, Choice, Range, suggest
from drone.search.study import TrialRecord

BASE = override(get("finetune"), {"epochs": 8}, "test")
GRACE = ray_tune.grace_epochs(BASE, DEFAULT)


def record(number: int, scores: list[float]) -> TrialRecord:
    history = [
        {"epoch": epoch, "metrics": {"objective": score}}
        for epoch, score in enumerate(scores, start=1)
    ]
    return TrialRecord(number, {}, 0, history=history, objective=scores[-1])


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_trial_that_lags_behind_is_ended_but_not_before_its_head_has_learnt(name: str) -> None:
    scheduler = make_scheduler(name, BASE, DEFAULT)
    for number in range(6):
        assert not recall(scheduler, f"good-{number}", record(number, [0.8 + number / 100] * 7))
    young = record(7, [0.1] * (GRACE - 1))
    assert not recall(scheduler, "young", young)
    ends = [recall(scheduler, f"lagging-{n}", record(n, [0.1] * n)) for n in range(1, 8)]
    assert any(ends[GRACE - 1 :]) and not any(ends[: GRACE - 1])
    assert not recall(scheduler, "leading", record(9, [0.9] * (GRACE + 3)))


def test_nothing_is_ended_if_nobody_wants_it() -> None:
    scheduler = make_scheduler("none", BASE, DEFAULT)
    for number in range(6):
        recall(scheduler, f"good-{number}", record(number, [0.8] * 8))
    assert not recall(scheduler, "bad", record(8, [0.1] * 7))


class Heard:
    """A recorder that only listens."""

    def __init__(self) -> None:
        self.trials: list[int] = []

    def began(self, part: str, record: TrialRecord) -> None:
        self.trials.append(record.number)

    def changed(self, part: str, record: TrialRecord) -> None:
        """Not of interest."""


def test_no_trial_begins_when_the_time_is_over(tmp_path: Path) -> None:
    study = optuna_study.open_study(tmp_path, "timed", optuna_study.RepeatableTPE(0))
    scheduler = make_scheduler("none", BASE, DEFAULT)
    source = ray_tune.StudySearch(study, DEFAULT, BASE, 10, [], scheduler)
    left, heard = [True, True, False], Heard()
    source.prepare("trials", heard, 4, BASE.epochs, lambda: left.pop(0))
    first, second = source.suggest("a"), source.suggest("b")
    assert (first["number"], second["number"]) == (0, 1)
    assert source.suggest("c") == Searcher.FINISHED
    assert heard.trials == [0, 1]


def resumed(folder: Path, known: TrialRecord) -> ray_tune.StudySearch:
    """A study whose trial 0 is known, and of which Optuna has not heard the end."""
    study = optuna_study.open_study(folder, "killed", optuna_study.RepeatableTPE(0))
    study.ask()
    scheduler = make_scheduler("asha", BASE, DEFAULT)
    return ray_tune.StudySearch(study, DEFAULT, BASE, 2, [known], scheduler)


def test_a_trial_that_is_over_is_not_begun_again_where_optuna_does_not_know(tmp_path: Path) -> None:
    known = record(0, [0.8] * BASE.epochs)
    known.state = "finished"
    heard, source = Heard(), resumed(tmp_path, known)
    source.prepare("trials", heard, 1, BASE.epochs, lambda: True)
    assert source.suggest("a")["number"] == 1
    assert heard.trials == [1] and known.state == "finished"


def test_a_trial_that_was_killed_after_its_last_epoch_is_finished(tmp_path: Path) -> None:
    known = record(0, [0.8] * BASE.epochs)
    heard, source = Heard(), resumed(tmp_path, known)
    source.prepare("trials", heard, 1, BASE.epochs, lambda: True)
    assert source.suggest("a")["number"] == 1
    assert heard.trials == [0, 1] and known.state == "finished"


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A study's run in a store of its own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    tracking.connect()
    experiment = MlflowClient().get_experiment_by_name("drone").experiment_id
    return MlflowClient().create_run(experiment).info.run_id


def only_child(parent: str) -> mlflow.entities.Run:
    experiment = MlflowClient().get_run(parent).info.experiment_id
    (run,) = MlflowClient().search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return run


def test_a_trial_whose_settings_could_not_be_logged_has_one_run_with_them(
    parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise MlflowException("away")

    trial = record(0, [0.5])
    trial.history[0] |= {"time_ms": 1, "metrics": {"train/loss": 1.0, "objective": 0.5}}
    trial.state, trial.usage = "finished", {"resource/wall_s": 2.0}
    log_params = TrackedRun.log_params
    monkeypatch.setattr(TrackedRun, "log_params", away)
    killed = Children(parent, lambda _: None)
    killed.begin("trials", trial, "d0", {"seed": 0}, {})
    killed.update("trials", trial)
    assert only_child(parent).info.status == "RUNNING"
    monkeypatch.setattr(TrackedRun, "log_params", log_params)
    # Killed after the last values were logged, and before the run was ended.
    TrackedRun(only_child(parent).info.run_id, "d0", away, set()).log_values(
        {"objective": 0.5, **trial.usage}
    )
    again = Children(parent, lambda _: None)
    for children in (killed, again):
        children.begin("trials", trial, "d0", {"seed": 0}, {})
    again.update("trials", trial)
    run = only_child(parent)
    assert run.info.status == "FINISHED" and run.data.params == {"seed": "0"}
    for name in ("objective", "resource/wall_s"):
        assert len(MlflowClient().get_metric_history(run.info.run_id, name)) == 1


def test_a_run_that_the_store_does_not_have_names_the_store(parent: str) -> None:
    MlflowClient().delete_run(parent)
    for run_id in (parent, "0" * 32):
        with (
            pytest.raises(RunError, match=rf"mlflow\.db cannot go on with run {run_id}"),
            tracking.tracked("study", lambda _: None, run_id),
        ):
            pass


def test_optunas_database_is_made_anew_from_the_trials(tmp_path: Path) -> None:
    space = {"batch_size": Range(8, 64), "optim.lr_head": Range(1e-4, 1e-2, log=True)}
    space["model.head_width"] = Choice((0, 64))
    studies = {}
    for name in ("whole", "lost"):
        (tmp_path / name).mkdir()
        sampler = optuna_study.RepeatableTPE(0)
        studies[name] = optuna_study.open_study(tmp_path / name, "s", sampler)
    whole, lost = studies["whole"], studies["lost"]
    optuna_study.begin_with(whole, [{"batch_size": 9}, {"batch_size": 10}])
    records = []
    for number in range(14):
        chosen = suggest(space, BASE, whole.ask())
        score = chosen["batch_size"] / 100
        records.append(TrialRecord(number, chosen, 0, history=record(0, [score]).history))
        if number < 13:
            records[-1].state, records[-1].objective = "finished", score
        optuna_study.tell(whole, number, records[-1])
    optuna_study.restore(lost, records, space, [])
    (left, right) = (
        [(trial.number, trial.state, trial.params, trial.values) for trial in study.trials]
        for study in (whole, lost)
    )
    assert left == right and len(optuna_study.unfinished(lost)) == 1
    assert suggest(space, BASE, whole.ask()) == suggest(space, BASE, lost.ask())


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    (tmp_path / optuna_study.FILE).write_bytes(b"no database" * 1000)
    with pytest.raises(RunError, match=r"optuna\.db cannot be read: .*delete it"):
        optuna_study.open_study(tmp_path, "s", optuna_study.RepeatableTPE(0))


def test_a_trial_without_its_data_set_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict] = []
    monkeypatch.setattr(tune_trial.tune, "report", told.append)
    spec = SimpleNamespace(base=BASE, data=str(tmp_path / "gone"), fingerprint="", storage="runs")
    trial = {"part": "trials", "number": 0, "params": {}, "seed": 0, "resplit": None, "known": 0}
    tune_trial.run(trial, spec)
    (news,) = (json.loads(report[tune_trial.NEWS]) for report in told)
    assert news["state"] == "failed" and "gone" in news["reason"]


def test_a_model_may_have_a_quote_in_its_name_and_go_back(parent: str) -> None:
    client, name = MlflowClient(), "o'hara"
    client.create_registered_model(name)
    for alias in (registry.PREVIOUS, registry.CHAMPION):
        made = client.create_model_version(name, "somewhere", run_id=parent)
        client.set_registered_model_alias(name, alias, made.version)
    assert registry.version_of(name, parent) == "2"
    champion, previous = registry.rollback(name)
    assert (champion.version, previous.version) == ("1", "2")
    assert registry.holder(name, registry.CHAMPION) == champion
    assert registry.holder(name, registry.PREVIOUS) == previous
