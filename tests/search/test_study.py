"""Trials on disk, why they stop, and the conclusions of a study."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from drone.errors import RunError
from drone.presets import get_preset
from drone.search import report, summary
from drone.search.space import DEFAULT
from drone.search.study import Study, StudySpec, TrialRecord
from drone.training.best_epoch import objective
from drone.training.early_stopping import reason_to_stop

RECALLS = ("FB", "LQC", "SQC", "WD")


def entry(epoch: int, macro_f1: float = 0.5, loss: float = 1.0, **metrics: float) -> dict:
    recalls = {f"validation/recall_{name}": macro_f1 for name in RECALLS}
    figures = {"validation/macro_f1": macro_f1, "validation/loss": loss, "train/loss": loss}
    content = {**recalls, **figures, "objective": macro_f1, **metrics}
    return {"epoch": epoch, "time_ms": epoch, "metrics": content}


def trial(number: int, score: float, state: str = "finished", **params: object) -> TrialRecord:
    history = [entry(1, score / 2), entry(2, score)]
    return TrialRecord(
        number,
        dict(params),
        0,
        state=state,
        objective=score,
        history=history,  # type: ignore[arg-type]
    )


def test_the_objective_is_the_macro_f1_of_the_best_epoch() -> None:
    history = [entry(1, 0.7, loss=0.9), entry(2, 0.8, loss=1.0), entry(3, 0.6, loss=0.95)]
    assert objective(history, "loss") == 0.7
    assert objective(history, "macro_f1") == 0.8
    assert objective([], "loss") == 0.0


def test_reasons_to_stop() -> None:
    collapsed = {f"validation/recall_{name}": float(name == "SQC") for name in RECALLS}
    healthy = [entry(epoch) for epoch in (1, 2, 3, 4)]
    assert reason_to_stop(healthy, 4, 1.5) is None
    assert reason_to_stop([], 4, 1.5) is None
    assert "not finite" in reason_to_stop([entry(1, loss=math.nan)], 4, 1.5)
    assert "diverged" in reason_to_stop([*healthy, entry(5, loss=4.2)], 4, 1.5)
    twice = [*healthy, entry(5, **collapsed), entry(6, **collapsed)]
    assert "collapsed" in reason_to_stop(twice, 4, 1.5)
    assert reason_to_stop(twice[:-1], 4, 1.5) is None  # Once may be chance.
    assert reason_to_stop(twice, 4, 6) is None  # The head alone is not judged.


def test_a_study_is_read_as_it_was_written(tmp_path: Path) -> None:
    study = Study(tmp_path / "s")
    spec = StudySpec(
        name="s",
        base=get_preset("finetune"),
        space=DEFAULT,
        data="/data",
        fingerprint="f" * 64,
        weights="imagenet",
        first_trials=[{"model.unfreeze_depth": 5}],
        num_trials=3,
        scheduler="asha",
        run_id="1",
        storage="/runs",
    )
    study.write_spec(spec)
    assert study.read_spec() == spec
    records = [trial(0, 0.8, **{"model.unfreeze_depth": 3}), trial(1, 0.1, "pruned")]
    for record in reversed(records):
        study.save("trials", record)
    assert study.records("trials") == records
    assert study.records("confirm") == []
    with pytest.raises(RunError, match=r"holds no study \(no study.json\)"):
        Study(tmp_path).read_spec()


@pytest.mark.parametrize("content", ["{}", "[]", "3", '{"schema": 3}', '{"schema": 3, "name'])
def test_a_damaged_study_names_its_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(RunError, match=r"study\.json is damaged"):
        Study(tmp_path).read_spec()
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "0007.json").write_text(content)
    with pytest.raises(RunError, match=r"0007\.json is damaged.*or move it away and --resume"):
        Study(tmp_path).records("trials")


def test_a_study_of_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text('{"schema": 1, "name": "s"}')
    with pytest.raises(RunError, match=r"Cannot resume .*: it has schema 1, this version reads 3"):
        Study(tmp_path).read_spec()


def test_finished_trials_rank_first() -> None:
    records = [trial(0, 0.7), trial(1, 0.9, "pruned"), trial(2, 0.8), trial(3, 0.95, "failed")]
    assert [record.number for record in summary.top_trials(records, 3)] == [2, 0, 1]


def test_a_steady_configuration_beats_a_lucky_one() -> None:
    steady, lucky = trial(0, 0.80), trial(1, 0.90)
    ranked = summary.rank_confirmed(
        [lucky, steady],
        {
            0: [trial(10, 0.79), trial(11, 0.80), trial(12, 0.81)],
            1: [trial(20, 0.90), trial(21, 0.70), trial(22, 0.86), trial(23, 0.1, "failed")],
        },
    )
    assert [config.trial.number for config in ranked] == [0, 1]
    assert ranked[1].mean == pytest.approx(0.82)
    variance, other_variance = (
        np.var([0.90, 0.70, 0.86], ddof=1),
        np.var([0.79, 0.80, 0.81], ddof=1),
    )
    moderated = (variance + (variance + other_variance) / 2) / 2
    # The lower end of the two-sided 90 % interval is that of the one-sided 95 %.
    low, _ = stats.t.interval(0.9, 4, loc=0.82, scale=np.sqrt(moderated / 3))
    assert ranked[1].lower == pytest.approx(low)


def test_three_scores_that_are_close_by_chance_do_not_win() -> None:
    close, better = trial(1, 0.9), trial(0, 0.8)
    scores = {1: (0.811, 0.783, 0.836), 0: (0.801, 0.800, 0.845)}
    ranked = summary.rank_confirmed(
        [close, better],
        {number: [trial(10 * number, score) for score in row] for number, row in scores.items()},
    )
    assert ranked[0].trial is better


def test_a_run_that_is_hard_for_all_configurations_counts_against_none() -> None:
    # The same images are hard for both; on each of them the second is better.
    first, second = trial(0, 0.9), trial(1, 0.8)
    ranked = summary.rank_confirmed(
        [first, second],
        {
            0: [trial(10, 0.80), trial(11, 0.60), trial(12, 0.91)],
            1: [trial(20, 0.82), trial(21, 0.61), trial(22, 0.93)],
        },
    )
    assert [config.trial.number for config in ranked] == [1, 0]
    assert ranked[0].mean - ranked[0].lower < 0.01 < np.std(ranked[0].scores)


def test_a_configuration_with_stopped_or_failed_runs_does_not_win() -> None:
    good, brittle, unlucky = trial(0, 0.8), trial(1, 0.9), trial(2, 0.9)
    ranked = summary.rank_confirmed(
        [brittle, good, unlucky],
        {
            0: [trial(10, 0.900), trial(11, 0.905), trial(12, 0.895)],
            1: [trial(20, 0.910), trial(21, 0.25, "stopped"), trial(22, 0.25, "stopped")],
            2: [trial(30, 0.910), trial(31, 0.9, "failed"), trial(32, 0.9, "failed")],
        },
    )
    assert [config.trial.number for config in ranked] == [0, 1, 2]
    assert ranked[1].mean == pytest.approx((0.910 + 0.25 + 0.25) / 3)


def test_near_copies_are_confirmed_if_only_rates_are_searched() -> None:
    records = [trial(number, 0.7 + number / 100) for number in range(10)]
    assert [record.number for record in summary.select_for_confirmation(records, 3)] == [9, 8, 7, 0]


def test_near_copies_are_not_confirmed_but_the_first_trial_is() -> None:
    depth, rate = "model.unfreeze_depth", "optim.lr_head"
    records = [
        trial(0, 0.70, **{depth: 5, rate: 1e-3}),
        trial(1, 0.90, **{depth: 0, rate: 1e-3}),
        trial(2, 0.89, **{depth: 0, rate: 2e-3}),
        trial(3, 0.80, **{depth: 3, rate: 1e-3}),
    ]
    chosen = summary.select_for_confirmation(records, 2)
    assert [record.number for record in chosen] == [1, 3, 0]
    assert [record.number for record in summary.select_for_confirmation(records, 3)] == [1, 3, 0]


def test_a_sentence_on_each_setting() -> None:
    generator = np.random.default_rng(0)
    records = []
    for number in range(40):
        depth, rate = [0, 3, 5][number % 3], float(10 ** generator.uniform(-3.5, -2))
        score = 0.6 + 0.05 * depth + generator.normal(0, 0.005)
        records.append(
            trial(number, score, **{"model.unfreeze_depth": depth, "optim.lr_head": rate})
        )
    sentences = summary.sentences(records, DEFAULT, {"model.unfreeze_depth": 0.9})
    assert next(iter(sentences)) == "model.unfreeze_depth"
    assert sentences["model.unfreeze_depth"].startswith("Importance 90%. Best at 5, mean 0.8")
    assert "weakest at 0, 0.6" in sentences["model.unfreeze_depth"]
    assert "The difference is within the noise." in sentences["optim.lr_head"]
    assert sentences["model.dropout"] == "Only 0 trials used it: too few to say anything."


def test_the_report_shows_everything_and_is_self_contained(tmp_path: Path) -> None:
    records = [trial(0, 0.7, **{"model.head": "<mlp>"}), trial(1, 0.8, "stopped")]
    records[1].reason = "diverged & gone"
    confirmed = [summary.ConfirmedConfig(records[0], (0.7, 0.72), 0.71, 0.70)]
    figure = tmp_path / "some_plot.png"
    figure.write_bytes(b"png")
    content = report.StudyReport(
        title="Study <s>",
        facts={"run": "1"},
        winner="Trial 0 wins.",
        trials=summary.table(records, {0: "d0 w0", 1: "d5 w0"}),
        confirmed=confirmed,
        names={0: "d0 w0", 1: "d5 w0"},
        sentences={"model.dropout": "It says nothing."},
        figures=[figure],
    )
    html = report.write(tmp_path / "out", content).read_text()
    for text in ("Study &lt;s&gt;", "&lt;mlp&gt;", "diverged &amp; gone", "It says nothing."):
        assert text in html
    assert "0.7100" in html and 'alt="some plot"' in html and "http" not in html
    table = pd.read_csv(tmp_path / "out" / "trials.csv")
    assert list(table["state"]) == ["finished", "stopped"]
