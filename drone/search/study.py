"""A study on disk: its spec, and every trial with its epochs.

    study.json          the spec; written again when the study is resumed
    trials/0007.json    a trial, rewritten after each of its epochs
    confirm/0007.json   one of the best configurations, trained again with another seed

These files are the truth that a study resumes from: MLflow and Optuna are brought up to date from
them. Each is written to another name and renamed.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from drone.commands import command
from drone.config import differing, override, to_dict
from drone.errors import RunError
from drone.files import SchemaError, seal, unseal, write_whole
from drone.redaction import redact, without_mask
from drone.search.domain import Choice, Domain, Range
from drone.search.scoring import Objective
from drone.training.best_epoch import History
from drone.training.config import TrainConfig

SCHEMA = 6
STUDY_FILE = "study.json"

Part = Literal["trials", "confirm"]
"""The search itself, or the confirmation of its best configurations."""

State = Literal["running", "waiting", "finished", "pruned", "stopped", "failed"]
"""waiting: between two folds, until other trials have come as far. pruned: ended by the scheduler.
stopped: ended itself, such as after diverging. failed: its process broke."""


@dataclass
class TrialRecord:
    """A trial with its results so far."""

    number: int
    """Counted from 0 within its part of the study."""

    params: dict[str, Any]
    """The searched settings, by dotted name."""

    seed: int
    num_folds: int = 1
    """Number of folds that it is trained on; 1 holds out the validation split."""

    state: State = "running"
    reason: str = ""
    """Why it was pruned, stopped or failed."""

    pruned_by: int | None = None
    """Number of the trial that it was worse than, if that is why it was pruned."""

    score: float | None = None
    """Its objective over all complete folds, at its best epoch; None before the first epoch."""

    score_se: float | None = None
    """Standard error of the score."""

    history: History = field(default_factory=list)
    """An entry per epoch, fold by fold, with its "fold" (from 0) and its predictions."""

    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics over all complete folds with their standard errors, once it has ended."""

    usage: dict[str, float] = field(default_factory=dict)
    """Wall time in seconds and peak memory in MB, by metric name."""

    cache_reason: str = ""
    """The cache policy's decision, in words."""

    @property
    def has_ended(self) -> bool:
        """Whether the trial has ended, in whichever way."""
        return self.state not in ("running", "waiting")

    def after(self, num_epochs: int) -> "TrialRecord":
        """Returns the trial as it was after so many epochs, if it has had more."""
        if len(self.history) <= num_epochs:
            return self
        history = self.history[:num_epochs]
        state: State = "failed" if self.state == "failed" else "waiting"
        return replace(self, state=state, history=history, score=history[-1]["metrics"]["score"])

    @property
    def has_score(self) -> bool:
        """Whether its score says something about its configuration."""
        is_known = self.score is not None and math.isfinite(self.score)
        return is_known and self.state != "failed"


def mean_history(history: History) -> History:
    """Returns an entry for each epoch with the means of the metrics over the folds.

    Folds that have not reached an epoch do not count in it. An epoch is as old as the newest entry
    of it and those before, so that time and epochs have one order. The score is left out: it is of
    all folds together.
    """
    by_epoch: dict[int, History] = {}
    for entry in history:
        by_epoch.setdefault(entry["epoch"], []).append(entry)
    means: History = []
    time_ms = 0
    for epoch, entries in sorted(by_epoch.items()):
        time_ms = max(time_ms, *(entry["time_ms"] for entry in entries))
        metrics = {
            name: fmean(entry["metrics"][name] for entry in entries)
            for name in entries[0]["metrics"]
            if name != "score"
        }
        means.append({"epoch": epoch, "time_ms": time_ms, "metrics": metrics})
    return means


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """Everything that decides a study; with another spec it would be another study."""

    name: str
    base: TrainConfig
    """Settings of all trials."""

    space: Mapping[str, Domain]
    data: str
    """Folder or URI of the data set."""

    fingerprint: str
    weights: str
    first_trials: Sequence[Mapping[str, Any]]
    """Parameters of the trials that come before the sampler's own."""

    num_trials: int
    scheduler: str
    folds: int
    """Number of folds of each trial; 0 until the data set has decided it."""

    objective: Objective
    run_id: str
    """The parent run in MLflow."""

    storage: str
    """Folder or URI of the trials' checkpoints."""

    has_default_epochs: bool = False
    """Whether the epochs of `base` are the preset's, until the data set has decided on fewer."""

    home: str = ""
    """Folder of the tracking store, by which paths are found again in a project that was moved;
    empty if it is none of this machine."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """What may change when the study is resumed, as it was last set, by the flags of tune.py."""

    def final_name(self, config: TrainConfig) -> str:
        """Returns the name of the final run, by which a resumed study recognises it.

        It depends only on the settings that differ from the defaults, so a setting that a later
        version adds does not change it, and on the study's run, since another study of the same
        name may have had other data.
        """
        changed = differing(to_dict(config), to_dict(TrainConfig()))
        text = json.dumps([changed, self.run_id], sort_keys=True)
        return f"{self.name}-final-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


class Study:
    """A study's folder."""

    def __init__(self, folder: Path) -> None:
        """Uses a folder, which need not exist yet."""
        self.folder = folder

    @property
    def exists(self) -> bool:
        """Whether the folder holds a study."""
        return (self.folder / STUDY_FILE).exists()

    def read_spec(self) -> StudySpec:
        """Reads the spec that the study was started with.

        Raises:
            RunError: The folder holds no study, or one that cannot be read.
        """
        file = self.folder / STUDY_FILE
        try:
            content = unseal(file.read_bytes(), SCHEMA)
            content["base"] = override(TrainConfig(), content["base"], str(file))
            content["space"] = {
                # JSON has no types; only a Choice has values.
                name: Choice(tuple(domain["values"])) if "values" in domain else Range(**domain)
                for name, domain in content["space"].items()
            }
            for name in ("data", "storage"):
                content[name] = without_mask(content[name])
            if "://" not in content["storage"]:
                # By default in this folder, wherever that is now.
                content["storage"] = str(self.folder / content["storage"])
            return StudySpec(**content)
        except OSError as error:
            raise RunError(f"{self.folder} holds no study (no {STUDY_FILE}).") from error
        except SchemaError as error:
            raise RunError(
                f"Cannot resume {self.folder}: it has schema {error.schema}, this version reads "
                f"{SCHEMA}. "
                f"Start a new study: {command('tune', data='DATASET')}"
            ) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{file} is damaged: it does not hold the spec of a study ({error}). Restore it "
                f"from a copy, or start a new study."
            ) from error

    def write_spec(self, spec: StudySpec) -> None:
        """Writes the spec of a study."""
        content = {**vars(spec), "base": to_dict(spec.base)}
        if "://" not in spec.storage and Path(spec.storage).is_relative_to(self.folder):
            content["storage"] = str(Path(spec.storage).relative_to(self.folder))
        content["space"] = {name: asdict(domain) for name, domain in spec.space.items()}
        _write_json(self.folder / STUDY_FILE, content)

    def save(self, part: Part, record: TrialRecord) -> None:
        """Writes a trial."""
        _write_json(self.folder / part / f"{record.number:04d}.json", asdict(record))

    def records(self, part: Part) -> list[TrialRecord]:
        """Returns all trials of a part, by number.

        Raises:
            RunError: A file cannot be read.
        """
        # Not the hidden files that a kill while writing may leave.
        return [_read_record(file) for file in sorted((self.folder / part).glob("[0-9]*.json"))]


def _read_record(file: Path) -> TrialRecord:
    try:
        return TrialRecord(**unseal(file.read_bytes(), SCHEMA))
    except (OSError, TypeError, ValueError) as error:
        raise RunError(
            f"{file} is damaged: {error}. Restore it from a copy, or move it away and --resume: "
            f"the study continues without this trial, or runs it again if it was the last."
        ) from error


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Before it is sealed: the checksum is of what the file holds.
    redacted = json.loads(redact(json.dumps(content)))
    write_whole(file, seal(redacted, SCHEMA))
