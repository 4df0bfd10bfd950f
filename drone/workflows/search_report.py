"""Writes the result of a study into its folder, and logs it to its run."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from drone.config import flatten, to_dict
from drone.data.dataset import Dataset
from drone.errors import TrainingError
from drone.evaluation import plots as evaluation_plots
from drone.redaction import redact
from drone.search import plots, report, summary
from drone.search.study import StudySpec, TrialRecord
from drone.search.summary import ConfirmedConfig
from drone.tracking.runs import TrackedRun
from drone.training.config import TrainConfig
from drone.workflows.search_trials import StudyRunner

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

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return {
            "trial": self.trial.number,
            "macro_f1": self.trial.objective,
            "params": self.trial.params,
            "config": str(self.config_file),
            "report": str(self.report),
        }


def log_spec(run: TrackedRun, spec: StudySpec, dataset: Dataset) -> None:
    """Logs the spec of a new study."""
    base = flatten(to_dict(spec.base))
    run.log_params({f"base.{name}": value for name, value in base.items()})
    run.log_params({f"space.{name}": str(domain) for name, domain in spec.space.items()})
    run.log_params({"num_trials": spec.num_trials, "scheduler": spec.scheduler})
    run.log_dataset(dataset)


def conclude(
    runner: StudyRunner, run: TrackedRun, confirmed: Sequence[ConfirmedConfig]
) -> StudyResult:
    """Selects the winner, writes best.yaml and the report, and logs both to the study's run.

    Raises:
        TrainingError: No trial completed an epoch.
    """
    study, records = runner.study, runner.study.records("trials")
    names = {record.number: runner.name_of(record) for record in records}
    best = _best(records)
    winner = confirmed[0].trial if confirmed else best
    config = runner.config_of(winner)
    config_file = study.folder / BEST_FILE
    # Before the report: the winner is safe even if a plot fails.
    config_file.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), "utf-8")
    sentence = _sentence(winner, names, confirmed, len(records))
    content = _report(runner, run, confirmed, names, sentence, config_file)
    folder = study.folder / "report"
    report_file = report.write(folder, content)
    run.log_folder(folder, "study")
    run.log_text(config_file.read_text("utf-8"), BEST_FILE)
    run.log_text(json.dumps(content.sentences, indent=1), "study/settings.json")
    # Of the search alone: lucky by selection, unlike the confirmed mean below.
    run.log_final({"best/objective": best.objective, "best/trial": best.number})
    if confirmed:
        metrics = {"confirmed/mean": confirmed[0].mean, "confirmed/lower": confirmed[0].lower}
        run.log_final(metrics)
    run.log_tags({"best": names[winner.number]})
    return StudyResult(winner, config, config_file, report_file.resolve(), sentence)


def _report(
    runner: StudyRunner,
    run: TrackedRun,
    confirmed: Sequence[ConfirmedConfig],
    names: dict[int, str],
    sentence: str,
    config_file: Path,
) -> report.StudyReport:
    """Returns the content of the report, and draws its figures into the study's folder."""
    spec, records = runner.spec, runner.study.records("trials")
    folder = runner.study.folder / "report"
    # The figures are drawn before `report.write` creates the folder.
    folder.mkdir(exist_ok=True)
    curves = folder / "learning_curves.png"
    evaluation_plots.save(plots.learning_curves(records, _best(records).number), curves)
    preset = spec.base.preset
    data = redact(spec.data)
    words = ["python", "ray_jobs/train.py", preset, "--data", data, "--config", str(config_file)]
    command = shlex.join(words)
    return report.StudyReport(
        title=f"Study {spec.name}",
        facts={
            "run": run.run_id,
            "data set": data,
            "fingerprint": spec.fingerprint,
            "trials": _counts(records),
            "use it": command,
        },
        winner=sentence,
        trials=summary.table(records, names),
        confirmed=confirmed,
        names=names,
        sentences=summary.sentences(records, spec.space, runner.sampler.importances()),
        figures=[*plots.draw_optuna_plots(runner.sampler, folder), curves],
    )


def _best(records: Sequence[TrialRecord]) -> TrialRecord:
    top = summary.top_trials(records, 1)
    if not top:
        raise TrainingError(
            "No trial completed an epoch, so there is nothing to select from. Give the study more "
            "time, or --add-trials."
        )
    return top[0]


def _sentence(
    winner: TrialRecord,
    names: dict[int, str],
    confirmed: Sequence[ConfirmedConfig],
    num_trials: int,
) -> str:
    subject = f"Trial {winner.number} ({names[winner.number]}) of {num_trials}"
    if not confirmed:
        return f"{subject} has the highest validation macro F1: {winner.objective:.4f}."
    first = confirmed[0]
    return (
        f"{subject} is the most reliable: macro F1 {first.mean:.4f} on average over "
        f"{len(first.scores)} new seeds and validation sets, at least {first.lower:.4f} (95 %); "
        f"{winner.objective:.4f} in the search."
    )


def _counts(records: Sequence[TrialRecord]) -> str:
    states = [record.state for record in records]
    parts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    return f"{len(records)}: {', '.join(parts)}"
