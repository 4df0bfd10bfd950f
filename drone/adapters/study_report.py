"""What a study came to: written into its folder, and logged to its run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from drone.adapters import optuna_study
from drone.adapters.mlflow_tracking import TrackedRun
from drone.adapters.study_run import TRIALS, Search
from drone.config import flatten, to_dict
from drone.data.dataset import Dataset
from drone.errors import TrainingError
from drone.evaluation import plots as evaluation_plots
from drone.search import plots, report, summary
from drone.search.study import Settings, TrialRecord
from drone.search.summary import Repeated
from drone.training.config import TrainConfig

BEST_FILE = "best.yaml"


@dataclass(frozen=True)
class Conclusion:
    """The configuration that a study recommends."""

    trial: TrialRecord
    config: TrainConfig
    file: Path
    """YAML that `train.py --config` takes."""

    report: Path
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "trial": self.trial.number,
            "macro_f1": self.trial.objective,
            "params": self.trial.params,
            "config": str(self.file),
            "report": str(self.report),
        }


def describe(run: TrackedRun, settings: Settings, dataset: Dataset) -> None:
    """Logs what a new study is asked to do."""
    run.log_params(
        {f"base.{name}": value for name, value in flatten(to_dict(settings.base)).items()}
    )
    run.log_params({f"space.{name}": str(domain) for name, domain in settings.space.items()})
    run.log_params({"num_trials": settings.num_trials, "scheduler": settings.scheduler})
    run.log_dataset(dataset)


def conclude(search: Search, run: TrackedRun, repeated: Sequence[Repeated]) -> Conclusion:
    """Chooses the winner, writes best.yaml and the report, and logs both to the study's run."""
    study, settings = search.study, search.settings
    records = study.records(TRIALS)
    names = {record.number: search.name_of(record) for record in records}
    best = _best(records)
    winner = repeated[0].trial if repeated else best
    config = search.config_of(winner)
    file = study.folder / BEST_FILE
    file.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), "utf-8")
    sentence = _sentence(winner, names, repeated, len(records))
    importances = optuna_study.importances(search.optuna)
    folder = study.folder / "report"
    folder.mkdir(exist_ok=True)
    curves = folder / "learning_curves.png"
    evaluation_plots.save(plots.learning_curves(records, best.number), curves)
    figures = [*optuna_study.draw(search.optuna, folder), curves]
    findings = report.Findings(
        title=f"Study {settings.name}",
        facts={
            "run": run.run_id,
            "data set": settings.data,
            "fingerprint": settings.fingerprint,
            "trials": _counts(records),
            "use it": f"python ray_jobs/train.py {config.preset} --data {settings.data} "
            f"--config {file}",
        },
        winner=sentence,
        trials=summary.table(records, names),
        repeated=repeated,
        names=names,
        sentences=summary.sentences(records, settings.space, importances),
        figures=figures,
    )
    written = report.write(folder, findings)
    run.log_folder(folder, "study")
    run.log_text(file.read_text("utf-8"), BEST_FILE)
    run.log_text(json.dumps(findings.sentences, indent=1), "study/settings.json")
    run.log_summary({"best/objective": best.objective, "best/trial": best.number})
    if repeated:
        run.log_summary({"confirmed/mean": repeated[0].mean, "confirmed/lower": repeated[0].lower})
    run.log_tags({"best": names[winner.number]})
    return Conclusion(winner, config, file, written.resolve(), sentence)


def _best(records: Sequence[TrialRecord]) -> TrialRecord:
    found = summary.best_of(records, 1)
    if not found:
        raise TrainingError(
            "No trial got to the end of an epoch, so there is nothing to choose from. Give the "
            "study more time, or --add-trials."
        )
    return found[0]


def _sentence(
    winner: TrialRecord, names: dict[int, str], repeated: Sequence[Repeated], count: int
) -> str:
    begin = f"Trial {winner.number} ({names[winner.number]}) of {count}"
    if not repeated:
        return f"{begin} has the highest macro F1 on validation: {winner.objective:.4f}."
    first = repeated[0]
    return (
        f"{begin} is the surest: macro F1 {first.mean:.4f} on average over {len(first.scores)} "
        f"new seeds and validation sets, at least {first.lower:.4f} (95 %); "
        f"{winner.objective:.4f} in the search."
    )


def _counts(records: Sequence[TrialRecord]) -> str:
    states = [record.state for record in records]
    parts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    return f"{len(records)}: {', '.join(parts)}"
