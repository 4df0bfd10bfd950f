"""What a run was started with: what it takes to resume it, to train it again, to evaluate it."""

import json
from dataclasses import dataclass
from pathlib import Path

from drone.commands import command
from drone.config import override, to_dict
from drone.data.dataset import Dataset
from drone.data.prepare.history import versions
from drone.errors import ConfigError, DataError, RunError
from drone.redaction import redact, without_mask
from drone.storage.filesystem import absolute
from drone.tracking import artifacts, runs
from drone.training.config import TrainConfig
from drone.workflows import moved

SPEC_FILE = "launch.json"
"""Artifact of a run: what it takes to resume it."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Specification of a run: settings, data set, starting weights and storage."""

    config: TrainConfig
    data: str
    """Folder or URI of the data set."""

    weights: str = "imagenet"
    """As `weights.load` takes it."""

    from_run: str = ""
    """Id of the run whose weights are the starting weights instead; empty for none."""

    storage: str = "runs"
    """Folder or URI of the run's checkpoints."""

    @property
    def has_lost_data(self) -> bool:
        """Whether the data set is no longer in its folder."""
        return "://" not in self.data and not Path(self.data).exists()

    def to_json(self) -> str:
        """Returns the artifact from which the run can be resumed, without credentials."""
        # Paths are absolute, since a run may be resumed from another folder.
        by_name = self.weights in ("imagenet", "none")
        content = {
            "config": to_dict(self.config),
            "data": absolute(self.data),
            "weights": self.weights if by_name else str(Path(self.weights).resolve()),
            "from_run": self.from_run,
            "storage": self.storage,
            # By it the paths are found again in a project that was moved.
            "home": str(runs.store_folder() or ""),
        }
        return redact(json.dumps(content, indent=1))


def read_spec(run_id: str) -> RunSpec:
    """Returns the spec that a run was started with, with its paths as they are now.

    Raises:
        RunError: The run stopped before it had a spec, or the spec is damaged.
    """
    try:
        content = artifacts.read_json(run_id, SPEC_FILE)
    except artifacts.MissingArtifactError as error:
        raise RunError(
            f"Run {run_id} has no {SPEC_FILE}: it stopped before training started, or was not "
            f"started by python ray_jobs/train.py. Start a new run: "
            f"{command('train', 'finetune', data='DATASET')}"
        ) from error
    try:
        home = str(content["home"])
        return RunSpec(
            config=override(TrainConfig(), content["config"], f"run {run_id}"),
            data=moved.present_input(without_mask(str(content["data"])), home),
            weights=moved.present_input(str(content["weights"]), home),
            from_run=str(content["from_run"]),
            storage=moved.present_place(without_mask(str(content["storage"])), home),
        )
    except (AttributeError, KeyError, ConfigError) as error:
        raise artifacts.damaged(run_id, SPEC_FILE, error) from error


def train_command(spec: RunSpec, **flags: object) -> str:
    """Returns the command that trains a run's preset once more, on its data set and weights."""
    weights = None if spec.weights == "imagenet" else spec.weights
    from_run = spec.from_run or None
    return command(
        "train",
        spec.config.preset,
        data=spec.data,
        weights=weights,
        from_run=from_run,
        **flags,
    )


def check_fingerprint(name: str, fingerprint: str | None, spec: RunSpec, dataset: Dataset) -> None:
    """Checks that a run's data set is still the one that it was trained on.

    Args:
        name: What needs that data set, for the error.
        fingerprint: Fingerprint of the data set that the run was trained on; None if unknown.
        spec: Spec of the run.
        dataset: Data set that is at its location now.

    Raises:
        DataError: It is another one; says how to get a run, or a data set, that fits.
    """
    if fingerprint in (None, dataset.fingerprint):
        return
    again = train_command(spec)
    restore, before = "", versions(dataset.folder)
    # Only the last version can be restored, and only where the data set was prepared.
    if "://" not in spec.data and before and before[-1].dataset.fingerprint == fingerprint:
        restore = (
            f" - or restore the version before: {command('prepare', out=spec.data, undo=True)}"
        )
    raise DataError(
        f"{name} was trained on the data set {str(fingerprint)[:12]}, and {spec.data} has become "
        f"{dataset.fingerprint[:12]} since. Train a new run on it: {again}{restore}"
    )
