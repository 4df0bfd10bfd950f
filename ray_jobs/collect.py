"""Collects images from the web into a raw folder, from a table of URLs or from public searches.

    python ray_jobs/collect.py --out raw --table urls.csv
    python ray_jobs/collect.py --out raw --search openverse commons --contact me@example.org
    python ray_jobs/collect.py --out negatives --negatives --search openverse commons --per-class 50
    python ray_jobs/collect.py --out raw --search commons --query "Winged Drones=fixed wing drone"
    RAY_ADDRESS=auto python ray_jobs/collect.py --out raw --table urls.parquet       (a cluster)

With --dry-run nothing is written. The same command again continues where it was stopped. The origin
and licence of each image are in provenance.jsonl. Next: prepare.py --raw raw, with --negatives
for what shows none of the classes.
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

from drone.collect.settings import FetchSettings, SearchSettings
from drone.workflows.requests import CollectRequest
from ray_jobs import cli, collection_tables, console


@dataclass(frozen=True, kw_only=True)
class Collect(CollectRequest):
    """Arguments of the job."""

    json: bool = False
    """Print the result as one JSON object, last."""

    # Without names, the flags of both groups have no prefix: --requests-per-s.
    searches: Annotated[SearchSettings, tyro.conf.arg(name="")] = field(
        default_factory=SearchSettings
    )
    fetching: Annotated[FetchSettings, tyro.conf.arg(name="")] = field(
        default_factory=FetchSettings
    )


def main(job: Collect) -> cli.Result:
    """Runs the job."""
    # Imported late: it takes seconds, for which --help and wrong usage should not wait.
    from drone.workflows import collection

    settings = collection.CollectSettings(search=job.searches, fetch=job.fetching)
    display = console.ConsoleDisplay()
    planned = collection.plan(job, settings, display)
    collection_tables.show_plan(planned, job.fetching)
    if job.dry_run:
        console.show(f"Nothing was written (--dry-run). Without it: {job.out}")
    else:
        collection.download(planned, job, settings, display)
    counts = collection.results(planned, job)
    if not job.dry_run:
        collection_tables.show_results(counts, job.out, negatives=job.negatives)
    return {
        "out": str(job.out),
        "dry_run": job.dry_run,
        "pending": len(planned.pending),
        "hosts": planned.hosts,
        "classes": {name: asdict(class_counts) for name, class_counts in counts.items()},
    }


if __name__ == "__main__":
    cli.start(Collect, main, __doc__)
