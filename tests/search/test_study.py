"""Trials on disk, why they stop, and the conclusions of a study."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drone.errors import RunError
from drone.presets import get_preset
from drone.search import report, summary, verdict
from drone.search.sampler import Importance
from drone.search.scorer import Scorer
from drone.search.space import DEFAULT
from drone.search.study import Study, StudySpec, TrialRecord, mean_history
from drone.training.early_stopping import reason_to_stop
from tests.search.studies import EPOCHS, scorer, trial_record


def entry(epoch: int, loss: float = 1.0, **metrics: float) -> dict:
    figures = {"validation/macro_f1": 0.5, "validation/loss": loss, "train/loss": loss}
    figures |= {"validation/accuracy": 0.5, "validation/predicted_classes": 4}
    return {"epoch": epoch, "time_ms": epoch, "metrics": {**figures, **metrics}}


def test_reasons_to_stop() -> None:
    collapsed = {"validation/predicted_classes": 1}
    healthy = [entry(epoch) for epoch in (1, 2, 3, 4)]
    assert reason_to_stop(healthy, 4, 1.5) is None
    assert reason_to_stop([], 4, 1.5) is None
    assert "not finite" in reason_to_stop([entry(1, loss=math.nan)], 4, 1.5)
    assert "diverged" in reason_to_stop([*healthy, entry(5, loss=4.2)], 4, 1.5)
    twice = [*healthy, entry(5, **collapsed), entry(6, **collapsed)]
    assert "collapsed" in reason_to_stop(twice, 4, 1.5)
    assert reason_to_stop(twice[:-1], 4, 1.5) is None  # Once may be chance.
    assert reason_to_stop(twice, 4, 6) is None  # The head alone is not judged.
    # A small fold may hold out images of one class.
    right = {**collapsed, "validation/accuracy": 1.0}
    assert reason_to_stop([*healthy, entry(5, **right), entry(6, **right)], 4, 1.5) is None


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
        scheduler="race",
        folds=5,
        objective="log_loss",
        run_id="1",
        storage="/runs",
    )
    study.write_spec(spec)
    assert study.read_spec() == spec
    params = {"model.unfreeze_depth": 3}
    records = [
        trial_record(0, [3.0] * 2 * EPOCHS, "finished", params, num_folds=2),
        trial_record(1, [1.0], "pruned"),
    ]
    for record in reversed(records):
        study.save("trials", record)
    assert study.records("trials") == records
    assert study.records("confirm") == []
    with pytest.raises(RunError, match=r"holds no study \(no study.json\)"):
        Study(tmp_path).read_spec()


@pytest.mark.parametrize("content", ["{}", "[]", "3", '{"schema": 6}', '{"schema": 4, "name'])
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
    with pytest.raises(RunError, match=r"Cannot resume .*: it has schema 1, this version reads 6"):
        Study(tmp_path).read_spec()


def test_trials_with_more_folds_rank_first_and_those_without_a_difference_are_ties() -> None:
    scores = scorer(num_folds=2)
    records = [
        trial_record(0, [3.0] * 2 * EPOCHS, "finished", num_folds=2),
        trial_record(1, [5.0] * EPOCHS, "pruned", num_folds=2),
        trial_record(2, [3.02] * 2 * EPOCHS, "finished", num_folds=2),
        trial_record(3, [1.0] * 2 * EPOCHS, "finished", num_folds=2),
        trial_record(4, [9.0] * 2 * EPOCHS, "failed", num_folds=2),
        trial_record(5, [], "failed", num_folds=2),
    ]
    ranked = summary.rank(records, scores)
    assert [trial.record.number for trial in ranked] == [2, 0, 3, 1]
    assert ranked[0].difference is None and not ranked[0].is_tie
    assert ranked[1].is_tie and not ranked[2].is_tie
    assert ranked[2].difference.low > 0 > ranked[3].difference.gain
    assert ranked[3].num_folds == 1
    table = summary.table(records, dict.fromkeys(range(6), "d0"), scores)
    assert list(table["trial"]) == [2, 0, 3, 1, 4, 5]
    assert list(table["tie"]) == ["", "tie", "", "", "", ""]


@pytest.mark.parametrize(
    ("qualities", "sentence", "winner"),
    [
        ((3.0, 5.0, 5.1), "d2 (trial 2) is better than the preset by", 2),
        ((5.0, 1.0, 1.1), "Nothing found is better than the preset: log-loss", 0),
        (
            (3.0, 3.005, 1.1),
            "Nothing found is surely better than the preset. d1 (trial 1) is ahead",
            0,
        ),
    ],
)
def test_the_verdict_says_what_is_known(
    qualities: tuple[float, float, float], sentence: str, winner: int
) -> None:
    records = [
        trial_record(number, [quality] * EPOCHS, "finished")
        for number, quality in enumerate(qualities)
    ]
    found = verdict.decide(records, scorer(), {n: f"d{n}" for n in range(3)}, "the preset")
    assert found is not None and found.sentence.startswith(sentence)
    assert found.winner.number == winner
    assert ("The preset is kept: log-loss 0." in found.sentence) == ("surely" in found.sentence)
    again = verdict.decide(records, scorer(), {n: f"d{n}" for n in range(3)}, None)
    assert again is not None and "the first trial (d0)" in again.sentence
    assert again.winner.number == int(np.argmax(qualities))
    assert verdict.decide([], scorer(), {}, "the preset") is None


def decided(records: list[TrialRecord], scores: Scorer) -> str:
    """The sentence of a study."""
    names = {record.number: f"d{record.number}" for record in records}
    found = verdict.decide(records, scores, names, "the preset")
    assert found is not None
    return found.sentence


def test_the_verdict_counts_the_ties_of_the_table() -> None:
    scores = scorer(num_folds=2)
    records = [
        trial_record(0, [3.0] * 2 * EPOCHS, "finished", num_folds=2),
        trial_record(1, [3.0] * EPOCHS, "pruned", num_folds=2),
        trial_record(2, [3.0] * 2 * EPOCHS, "finished", num_folds=2),
    ]
    table = summary.table(records, dict.fromkeys(range(3), "d0"), scores)
    # Trial 1 is as good, but has fewer folds.
    assert list(table["trial"]) == [0, 2, 1] and list(table["tie"]) == ["", "tie", ""]
    assert decided(records, scores).endswith("1 other trial is a tie.")


def test_the_verdict_names_what_it_could_not_compare() -> None:
    scores = scorer(num_folds=2)
    preset = trial_record(0, [1.0] * 2 * EPOCHS, "finished", num_folds=2)
    better = trial_record(1, [5.0] * EPOCHS, "stopped", num_folds=2)
    assert decided([preset, better], scores).startswith(
        "d1 (trial 1) was better than the preset on the folds that both have, but ended before the "
        "others; the preset is kept: log-loss"
    )
    failed = trial_record(0, [1.0] * EPOCHS, "failed", num_folds=2)
    assert "Its comparison with the preset is missing" in decided([failed, better], scores)
    assert "over 1 fold (" in decided([failed, better], scores)
    cut_short = trial_record(1, [2.0], "stopped", num_folds=2)
    assert "over a part of the first fold" in decided([cut_short], scores)


def test_a_score_that_is_no_number_counts_as_none() -> None:
    record = trial_record(1, [3.0] * EPOCHS, "stopped")
    record.score = math.nan
    assert not record.has_score
    assert (
        summary.rank([trial_record(0, [1.0], "finished"), record], scorer())[0].record.number == 0
    )


def test_near_copies_are_confirmed_if_only_rates_are_searched() -> None:
    records = [trial_record(number, [2.0 + number / 4], "finished") for number in range(10)]
    chosen = summary.select_for_confirmation(records, 3, scorer())
    assert [record.number for record in chosen] == [9, 8, 7, 0]


def test_near_copies_are_not_confirmed_but_the_first_trial_is() -> None:
    depth, rate = "model.unfreeze_depth", "optim.lr_head"
    records = [
        trial_record(0, [1.0], "finished", {depth: 5, rate: 1e-3}),
        trial_record(1, [4.0], "finished", {depth: 0, rate: 1e-3}),
        trial_record(2, [3.5], "finished", {depth: 0, rate: 2e-3}),
        trial_record(3, [2.0], "finished", {depth: 3, rate: 1e-3}),
    ]
    for count in (2, 3):
        chosen = summary.select_for_confirmation(records, count, scorer())
        assert [record.number for record in chosen] == [1, 3, 0]


def test_a_sentence_on_each_setting() -> None:
    generator = np.random.default_rng(0)
    records = []
    for number in range(40):
        depth, rate = [0, 3, 5][number % 3], float(10 ** generator.uniform(-3.5, -2))
        params = {"model.unfreeze_depth": depth, "optim.lr_head": rate}
        record = trial_record(number, [1.0], "finished", params)
        record.score = 0.6 - 0.05 * depth + generator.normal(0, 0.005)
        records.append(record)
    importance = Importance(0.9, 0.8, 0.95)
    sentences = summary.sentences(
        records, DEFAULT, {"model.unfreeze_depth": importance}, "log_loss"
    )
    assert next(iter(sentences)) == "model.unfreeze_depth"
    assert sentences["model.unfreeze_depth"].startswith(
        "Importance 90% (80% to 95%). Best at 5, mean 0.3"
    )
    assert "weakest at 0, 0.6" in sentences["model.unfreeze_depth"]
    assert "The difference is within the noise." in sentences["optim.lr_head"]
    assert "noise" not in sentences["model.unfreeze_depth"]
    assert sentences["model.dropout"] == "Only 0 trials used it: too few to say anything."


def test_settings_without_effect_are_within_the_noise() -> None:
    num_claims = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        records = []
        for number in range(30):
            params = {"model.unfreeze_depth": [0, 1, 2, 3, 5, 8, 12, 19][generator.integers(8)]}
            record = trial_record(number, [1.0], "finished", params)
            record.score = generator.normal()
            records.append(record)
        depth = summary.sentences(records, DEFAULT, {}, "log_loss")["model.unfreeze_depth"]
        num_claims += "within the noise" not in depth
    assert num_claims <= 3


def test_the_report_shows_everything_and_is_self_contained(tmp_path: Path) -> None:
    records = [
        trial_record(0, [3.0] * EPOCHS, "finished", {"model.head": "<mlp>"}),
        trial_record(1, [1.0], "stopped"),
    ]
    records[1].reason = "diverged & gone"
    names = {0: "d0 w0", 1: "d5 w0"}
    figure = tmp_path / "some_plot.png"
    figure.write_bytes(b"png")
    content = report.StudyReport(
        title="Study <s>",
        facts={"run": "1"},
        winner="Trial 0 wins.",
        advice=["More <birds>."],
        trials=summary.table(records, names, scorer()),
        confirmed=summary.table(records[:1], names, scorer()),
        objective="log loss, lower is better",
        sentences={"model.dropout": "It says nothing."},
        figures=[figure],
    )
    html = report.write(tmp_path / "out", content).read_text()
    for text in ("Study &lt;s&gt;", "&lt;mlp&gt;", "diverged &amp; gone", "More &lt;birds&gt;."):
        assert text in html
    assert "The best, trained again" in html and 'alt="some plot"' in html and "http" not in html
    table = pd.read_csv(tmp_path / "out" / "trials.csv")
    assert list(table["state"]) == ["finished", "stopped"]


def test_means_over_folds_have_an_entry_for_each_epoch() -> None:
    record = trial_record(0, [1.0] * EPOCHS + [2.0, 2.0], "pruned", num_folds=2)
    for position, entry_ in enumerate(record.history):
        entry_["time_ms"] = position
    means = mean_history(record.history)
    assert [entry_["epoch"] for entry_ in means] == list(range(1, EPOCHS + 1))
    # The first two epochs were reached in both folds.
    losses = [entry_["metrics"]["validation/loss"] for entry_ in means]
    assert losses == [2.25, 2.25] + [2.5] * (EPOCHS - 2)
    assert [entry_["time_ms"] for entry_ in means[:3]] == [EPOCHS, EPOCHS + 1, EPOCHS + 1]
    assert all("score" not in entry_["metrics"] for entry_ in means)
