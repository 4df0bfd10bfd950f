"""Checks every machine of the cluster: what would go wrong, and what to do about it.

    python ray_jobs/doctor.py                                        (this machine)
    ray submit cluster.yaml ray_jobs/doctor.py                       (a cluster)
    ray submit cluster.yaml ray_jobs/doctor.py -- --data s3://bucket/drones --weights imagenet

On each machine: Python, Ray, torch and torchvision and that they match, the project's code, the
precision that it computes in, writing to the storage and seeing it from here, the data set, the
weights, GPUs, shared memory, disk, clock. From this one: a round trip to the tracking server.
train.py and tune.py run the same checks before they start on a cluster. Exit code 1 if a check
fails.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
ROOTS = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(root for root in ROOTS if (root / "drone").is_dir())))

from ray_jobs import bug_report

bug_report.install(__name__)

from drone.errors import RunError
from ray_jobs import cli, console, results


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Arguments of the job."""

    data: str | None = None
    """Data set that every machine should be able to read: a folder or URI."""

    weights: str | None = os.environ.get("DRONE_WEIGHTS") or None
    """Weights to send to every machine: imagenet or a file."""

    storage: str = field(default_factory=cli.default_storage)
    """Folder or URI for checkpoints; DRONE_STORAGE sets another default."""

    activation_cache: Path = field(default_factory=cli.default_activation_cache)
    """Local folder of the activation cache, on every machine."""

    json: bool = False
    """Print the result as one JSON object, last."""


def main(job: Doctor) -> cli.Result:
    """Runs the job."""
    # Imported late: it takes seconds, for which --help and wrong usage should not wait.
    from drone.storage.filesystem import absolute
    from drone.workflows import cluster_check

    request = cluster_check.ClusterCheck(
        data=job.data,
        weights=job.weights,
        storage=job.storage,
        activation_cache=Path(absolute(str(job.activation_cache))),
    )
    findings = cluster_check.check(request, console.ConsoleDisplay())
    results.show_findings(findings)
    num_failed = sum(finding.verdict == "failure" for finding in findings)
    if num_failed:
        # For the exit code: scripts must not continue on a cluster that fails.
        raise RunError(f"{num_failed} of {len(findings)} checks fail; see the table for the fixes.")
    num_warnings = sum(finding.verdict == "warning" for finding in findings)
    machines = {name for finding in findings for name in finding.machines}
    return {"machines": len(machines), "checks": len(findings), "warnings": num_warnings}


if __name__ == "__main__":
    cli.start(Doctor, main, __doc__)
