"""Looks at every machine of the cluster and says what would go wrong, and what to do about it.

    python ray_jobs/doctor.py                                        (this machine)
    ray submit cluster.yaml ray_jobs/doctor.py                       (a cluster)
    ray submit cluster.yaml ray_jobs/doctor.py -- --data s3://bucket/drones --weights imagenet

Of each machine: Python, Ray, torch and torchvision and that they fit, the project's code, the
precision that it computes in, writing to the storage and seeing it from here, a round trip to the
tracking server, the data set, the weights, GPUs, shared memory, disk, clock. train.py and tune.py
do the same before they begin on a cluster. Exit code 1 if something fails.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
PLACES = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(place for place in PLACES if (place / "drone").is_dir())))

from typing import TYPE_CHECKING

from drone.errors import RunError
from ray_jobs import cli

if TYPE_CHECKING:
    from drone.adapters.doctor import Finding
    from drone.data.dataset import Dataset
    from drone.model.weights import Weights

MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failure": "[bold red]fails[/]"}


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Arguments of the job."""

    data: str | None = None
    """Data set that every machine should be able to read: a folder or URI."""

    weights: str | None = os.environ.get("DRONE_WEIGHTS")
    """Weights to send to every machine: imagenet or a file."""

    storage: str = field(default_factory=cli.storage)
    """Folder or URI for checkpoints; DRONE_STORAGE sets another default."""

    features: Path = field(default_factory=cli.features_folder)
    """Local folder for kept activations, on every machine."""

    json: bool = False
    """Print the result as one JSON object, last."""


def main(job: Doctor) -> cli.Result:
    """Runs the job."""
    from drone.adapters import dataset_cache, ray_cluster, storage
    from drone.adapters import mlflow_tracking as tracking
    from drone.model import weights

    uri = tracking.connect()
    started = weights.load(job.weights) if job.weights else None
    place = storage.resolve(job.storage)
    dataset = dataset_cache.open_at(job.data, say=cli.console.print) if job.data else None
    with ray_cluster.connected():
        findings = examine(uri, place, job.data, dataset, weights=started, features=job.features)
    show(findings)
    failed = [finding for finding in findings if finding.verdict == "failure"]
    if failed:
        raise RunError(f"{len(failed)} of {len(findings)} checks fail; the table says what to do.")
    warnings = sum(finding.verdict == "warning" for finding in findings)
    machines = {name for finding in findings for name in finding.machines}
    return {"machines": len(machines), "checks": len(findings), "warnings": warnings}


def show(findings: "list[Finding]") -> None:
    """Prints a row for each finding, and a line with the way out for each that is not well."""
    rows = [
        (finding.check, MARKS[finding.verdict], _machines(finding.machines), finding.says)
        for finding in findings
    ]
    cli.table("Doctor", ("check", "verdict", "machines", "says"), rows)
    for finding in findings:
        if finding.fix:
            cli.console.print(f"{finding.check} on {_machines(finding.machines)}: {finding.fix}")


def _machines(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"


def examine(
    tracking: str,
    place: str,
    data: str | None,
    dataset: "Dataset | None",
    weights: "Weights | None",
    features: Path,
) -> "list[Finding]":
    """What every machine says; Ray must be connected.

    Args:
        tracking: URI of the tracking store.
        place: for checkpoints.
        data: where the data set is.
        dataset: the same, opened here.
        weights: to send to every machine.
        features: folder on every machine for kept activations.
    """
    from drone.adapters import doctor, ray_cluster, storage

    subject = doctor.Subject(
        storage=ray_cluster.writable(place),
        data=ray_cluster.readable(storage.absolute(data)) if data else None,
        fingerprint=dataset.fingerprint if dataset else None,
        weights=weights,
        tracking=tracking,
        features=str(features.expanduser()),
    )
    return doctor.examine(subject, cli.console.print)


def before(
    tracking: str, place: str, data: str, dataset: "Dataset", weights: "Weights", features: Path
) -> None:
    """The first step of another job on a cluster; says nothing more if all is well.

    Raises:
        RunError: something fails.
    """
    from drone.adapters import ray_cluster

    if not ray_cluster.on_cluster():
        return
    findings = examine(tracking, place, data, dataset, weights, features)
    unwell = [finding for finding in findings if finding.verdict != "ok"]
    if unwell:
        show(unwell)
    if any(finding.verdict == "failure" for finding in unwell):
        raise RunError(
            "The cluster is not fit for this job; the table says what to do. Look again with "
            "ray_jobs/doctor.py, or start without looking: --no-doctor."
        )


if __name__ == "__main__":
    cli.start(Doctor, main, __doc__)
