"""Prepares a data set from raw images: scans, cleans, groups, splits, packs and audits them.

    python ray_jobs/prepare.py --raw images --out data/drones --dry-run   (what would be done)
    python ray_jobs/prepare.py --raw images more.zip s3://bucket/raw --out data/drones
    python ray_jobs/prepare.py --raw images --negatives planes-and-sky --out data/drones
    python ray_jobs/prepare.py --raw images --out data/drones --decisions decisions-....jsonl
    python ray_jobs/prepare.py --raw images --out data/drones --served served \\
        --decisions decisions-....jsonl
    python ray_jobs/prepare.py --raw images --out data/drones --bins      (for preset multires)
    python ray_jobs/prepare.py --out data/drones --undo
    python ray_jobs/prepare.py --diff data/drones@1f2e3d data/drones
    RAY_ADDRESS=auto python ray_jobs/prepare.py --raw /shared/raw --out /shared/drones  (a cluster)

Raw images lie in one subfolder per class, in a folder, a zip archive or object storage, or in
several of them; negatives, which show none of the classes, in one subfolder per kind. They are only
read. With --dry-run nothing is written but a cache of the scan.
"""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
ROOTS = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(root for root in ROOTS if (root / "drone").is_dir())))

from ray_jobs import bug_report

bug_report.install(__name__)

import tyro

from drone.data.prepare.plan import PrepareSettings
from drone.workflows.requests import PrepareRequest
from ray_jobs import cli, console, dataset_tables


@dataclass(frozen=True, kw_only=True)
class Prepare(PrepareRequest):
    """Arguments of the job."""

    json: bool = False
    """Print the result as one JSON object, last."""

    # Without a name, the flags of the settings have no prefix: --policy.
    settings: Annotated[PrepareSettings, tyro.conf.arg(name="")] = field(
        default_factory=PrepareSettings
    )


def main(job: Prepare) -> cli.Result:
    """Runs the job."""
    # Imported late: it takes seconds, for which --help and wrong usage should not wait.
    from drone.workflows import preparation

    if job.diff is not None:
        comparison = preparation.compare(*job.diff)
        dataset_tables.show_comparison(comparison, *job.diff)
        return {
            "fingerprints": comparison.fingerprints,
            "counts": comparison.counts,
            "changes": comparison.changes.to_dict("records"),
        }
    assert job.out is not None
    if job.undo:
        dataset = preparation.undo(job.out, console.show)
        console.show(f"Restored version {dataset.fingerprint[:12]} of {job.out}")
        return {"data": str(job.out), "fingerprint": dataset.fingerprint, "written": True}
    prepared, written = preparation.prepare(
        job, job.settings, lambda planned: dataset_tables.show_plan(planned, job), console.show
    )
    plan = prepared.plan
    _show_outcome(job, plan.fingerprint, written)
    return {
        "data": str(job.out),
        "fingerprint": plan.fingerprint,
        "written": written,
        "steps": plan.steps.to_dict("index"),
        "splits": plan.splits.to_dict("index"),
        "negatives": plan.negatives.to_dict("index"),
        "as_the_original_counted": plan.original_counts.to_dict("index"),
        "classes": asdict(plan.classes),
        "settings": asdict(job.settings),
    }


def _show_outcome(job: Prepare, fingerprint: str, written: bool) -> None:
    assert job.out is not None
    if job.dry_run:
        console.show(f"Nothing was written (--dry-run). Without it: {job.out}")
    elif written:
        console.show(f"Wrote {job.out}, fingerprint {fingerprint[:12]}")
        console.show(f"What is in it: {job.out / 'audit.html'}")
    else:
        console.show(f"{job.out} is up to date, fingerprint {fingerprint[:12]}")


if __name__ == "__main__":
    cli.start(Prepare, main, __doc__)
