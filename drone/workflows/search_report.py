"""Writes the result of a study into its folder, and logs it to its run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from drone.commands import command
from drone.config import flatten, to_dict
from drone.curation import plots as curation_plots
from drone.data.dataset import Dataset
from drone.errors import TrainingError
from drone.evaluation import plots as evaluation_plots
from drone.presets import get_preset
from drone.redaction import redact
from drone.search import plots, report, summary
from drone.search.scoring import in_words, sign
from drone.search.space import base_params
from drone.search.study import StudySpec, TrialRecord
from drone.search.verdict import Verdict, decide
from drone.tracking.runs import TrackedRun
from drone.training.config import TrainConfig, TrainOn
from drone.workflows.display import Display
from drone.workflows.improvements import Improvements, estimate
from drone.workflows.search_trials import StudyRunner, final_config

BEST_FILE = "best.yaml"


@dataclass(frozen=True)
class StudyResult:
    """The configuration that a study recommends."""

    trial: TrialRecord
    config: TrainConfig
    config_file: Path
    """YAML that `train.py --config` reads."""

    report: Path
    sentence: str
    advice: Sequence[str]
    """What would improve a model beside a search, in sentences."""

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return {
            "trial": self.trial.number,
            "score": self.trial.score,
            "score_se": self.trial.score_se,
            **{name: self.trial.metrics.get(name) for name in ("log_loss", "accuracy", "macro_f1")},
            "params": self.trial.params,
            "config": str(self.config_file),
            "report": str(self.report),
            "sentence": self.sentence,
            "advice": list(self.advice),
        }


def log_spec(run: TrackedRun, spec: StudySpec, dataset: Dataset) -> None:
    """Logs the spec of a new study."""
    base = flatten(to_dict(spec.base))
    run.log_params({f"base.{name}": value for name, value in base.items()})
    run.log_params({f"space.{name}": str(domain) for name, domain in spec.space.items()})
    run.log_params(
        {
            "num_trials": spec.num_trials,
            "scheduler": spec.scheduler,
            "folds": spec.folds,
            "objective": spec.objective,
        }
    )
    run.log_dataset(dataset)


def conclude(
    runner: StudyRunner,
    run: TrackedRun,
    confirmed: Sequence[TrialRecord],
    final_on: TrainOn,
    display: Display,
) -> StudyResult:
    """Selects the winner, writes best.yaml and the report, and logs both to the study's run.

    Args:
        runner: Has run the trials.
        run: The study's run.
        confirmed: Confirmation runs; empty without a confirmation.
        final_on: The images that the winner is trained on once more.
        display: Shows progress.

    Raises:
        TrainingError: No trial completed an epoch.
    """
    study, records = runner.study, runner.study.records("trials")
    names = {record.number: runner.name_of(record) for record in records}
    scorer = runner.confirmation_scorer if confirmed else runner.scorer
    verdict = decide(confirmed or records, scorer, names, _baseline(runner, records))
    if verdict is None:
        raise TrainingError(
            "No trial completed an epoch, so there is nothing to select from. Resume the study "
            "with --add-trials, and without a --time-budget-min or with a longer one."
        )
    winner = verdict.winner
    config = final_config(runner.spec, winner, scorer, final_on)
    config_file = study.folder / BEST_FILE
    # Before the report: the winner is safe even if a plot fails.
    config_file.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), "utf-8")
    improvements = estimate(runner.dataset, runner.weights, display)
    content = _report(runner, run, confirmed, names, verdict, improvements, config_file)
    folder = study.folder / "report"
    report_file = report.write(folder, content)
    run.log_folder(folder, "study")
    run.log_text(config_file.read_text("utf-8"), BEST_FILE)
    run.log_text(json.dumps(content.sentences, indent=1), "study/settings.json")
    run.log_final({f"best/{name}": value for name, value in winner.metrics.items()})
    run.log_final({"best/trial": winner.number})
    run.log_tags({"best": names[winner.number], "verdict": verdict.sentence})
    return StudyResult(
        winner,
        config,
        config_file,
        report_file.resolve(),
        verdict.sentence,
        improvements.sentences,
    )


def _baseline(runner: StudyRunner, records: Sequence[TrialRecord]) -> str | None:
    """Returns what the first trial is in words, if one would use it without a search."""
    spec = runner.spec
    if not records or records[0].params != base_params(spec.base, spec.space):
        return None
    config = runner.config_of(records[0])
    preset = replace(get_preset(config.preset), epochs=config.epochs, seed=config.seed)
    # A narrowed domain moves the preset's value, and --config changes others.
    if config == preset:
        return "the preset"
    return f"the study's start ({runner.name_of(records[0])})"


def _report(
    runner: StudyRunner,
    run: TrackedRun,
    confirmed: Sequence[TrialRecord],
    names: Mapping[int, str],
    verdict: Verdict,
    improvements: Improvements,
    config_file: Path,
) -> report.StudyReport:
    """Returns the content of the report, and draws its figures into the study's folder."""
    spec, records = runner.spec, runner.study.records("trials")
    folder = runner.study.folder / "report"
    # The figures are drawn before `report.write` creates the folder.
    folder.mkdir(exist_ok=True)
    figures = {
        "race": plots.race(records, spec.base.epochs),
        "learning_curves": plots.learning_curves(records, verdict.winner.number),
    }
    if improvements.curve is not None:
        figures["more_images"] = curation_plots.learning_curve(improvements.curve)
    for name, figure in figures.items():
        evaluation_plots.save(figure, folder / f"{name}.png")
    preset = spec.base.preset
    data = redact(spec.data)
    trials = summary.table(records, names, runner.scorer)
    again = pd.DataFrame()
    if confirmed:
        again = summary.table(confirmed, names, runner.confirmation_scorer)
    direction = "higher" if sign(spec.objective) > 0 else "lower"
    return report.StudyReport(
        title=f"Study {spec.name}",
        facts={
            "run": run.run_id,
            "data set": data,
            "fingerprint": spec.fingerprint,
            "trials": _counts(records),
            "folds": str(spec.folds),
            "use it": command("train", preset, data=data, config=config_file),
        },
        winner=verdict.sentence,
        advice=improvements.sentences,
        trials=trials,
        confirmed=again,
        objective=f"{in_words(spec.objective)}, {direction} is better",
        sentences=summary.sentences(
            [record.after(runner.sampler.num_epochs) for record in records],
            spec.space,
            runner.sampler.importances(),
            spec.objective,
        ),
        figures=[
            *(folder / f"{name}.png" for name in figures),
            *plots.draw_optuna_plots(runner.sampler, folder),
        ],
    )


def _counts(records: Sequence[TrialRecord]) -> str:
    states = [record.state for record in records]
    parts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    return f"{len(records)}: {', '.join(parts)}"
