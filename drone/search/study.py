"""A study on disk: what it was asked, and every trial with its epochs.

    study.json          the settings; written once
    trials/0007.json    a trial, written anew after each of its epochs
    confirm/0001.json   the same of a repetition of one of the best

These files are the truth that a study goes on from: MLflow and Optuna are brought up to date
from them. Each is written to another name and renamed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from drone.config import override, to_dict
from drone.errors import ConfigError, RunError
from drone.search.space import Choice, Domain, Range
from drone.training.config import TrainConfig
from drone.training.context import History

SCHEMA = 1
STUDY_FILE = "study.json"

State = Literal["running", "finished", "pruned", "ended", "failed"]
"""ended: stopped for a reason of its own, such as divergence. failed: its process broke."""


@dataclass
class TrialRecord:
    """A trial and what it has shown so far."""

    number: int
    """From 0 in its part of the study."""

    params: dict[str, Any]
    """What was varied, flat."""

    seed: int
    resplit: int | None = None
    """Number of another way to share out training and validation; None is the data set's own."""

    state: State = "running"
    reason: str = ""
    """Why it ended or failed."""

    objective: float = 0.0
    history: History = field(default_factory=list)
    usage: dict[str, float] = field(default_factory=dict)
    """Seconds and memory that it took."""

    reuse: str = ""
    """What the planner of kept activations said."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state != "running"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a study was asked to do; a change of these would be another study."""

    name: str
    base: TrainConfig
    space: Mapping[str, Domain]
    data: str
    fingerprint: str
    weights: str
    first_trials: Sequence[Mapping[str, Any]]
    """Settings of the trials that come before Optuna's own."""

    num_trials: int
    scheduler: str
    run_id: str
    """The parent run in MLflow."""

    storage: str
    """Folder or URI of the trials' checkpoints."""


class Study:
    """A study's folder."""

    def __init__(self, folder: Path) -> None:
        """Uses a folder; see `create` and `open_study`."""
        self.folder = folder

    @property
    def settings(self) -> Settings:
        """What it was asked.

        Raises:
            RunError: the folder holds no study, or one that cannot be read.
        """
        file = self.folder / STUDY_FILE
        try:
            content = json.loads(file.read_text("utf-8"))
        except OSError as error:
            raise RunError(f"{self.folder} holds no study (no {STUDY_FILE}).") from error
        except ValueError as error:
            raise RunError(f"{file} is damaged: {error}.") from error
        try:
            if content.pop("schema") != SCHEMA:
                raise RunError(f"{file} was written by another version of this program.")
            content["base"] = override(TrainConfig(), content["base"], str(file))
            content["space"] = {
                name: Choice(tuple(domain["values"])) if "values" in domain else Range(**domain)
                for name, domain in content["space"].items()
            }
            return Settings(**content)
        except (AttributeError, KeyError, TypeError, ConfigError) as error:
            raise RunError(
                f"{file} is damaged: it does not hold a study's settings ({error}). Bring it back "
                f"from a copy, or start a new study."
            ) from error

    def save_settings(self, settings: Settings) -> None:
        """Writes what it is asked."""
        content = {**vars(settings), "schema": SCHEMA, "base": to_dict(settings.base)}
        content["space"] = {name: asdict(domain) for name, domain in settings.space.items()}
        _write_json(self.folder / STUDY_FILE, content)

    def save(self, part: str, record: TrialRecord) -> None:
        """Writes a trial of a part: "trials" or "confirm"."""
        _write_json(self.folder / part / f"{record.number:04d}.json", asdict(record))

    def records(self, part: str) -> list[TrialRecord]:
        """All trials of a part by number.

        Raises:
            RunError: a file cannot be read.
        """
        return [_record(file) for file in sorted((self.folder / part).glob("[0-9]*.json"))]


def _record(file: Path) -> TrialRecord:
    try:
        return TrialRecord(**json.loads(file.read_text("utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise RunError(
            f"{file} is damaged: {error}. Delete it, then --resume: the trial is run again, or "
            f"left out if it had ended."
        ) from error


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    temporary.rename(file)
