"""Makes a data set of raw folders: scan, clean, group near duplicates, split, pack.

    python ray_jobs/prepare.py --raw pictures --out data/drones                (a laptop, a GPU box)
    RAY_ADDRESS=auto python ray_jobs/prepare.py --raw /shared/raw --out /shared/drones  (a cluster)

A raw folder has one subfolder a class; its files are never touched. Nothing is written with
--dry-run.
"""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
PLACES = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(place for place in PLACES if (place / "drone").is_dir())))

import pandas as pd
import tyro

from drone.adapters import ray_cluster
from drone.data.prepare import Plan, PrepareSettings, apply, check_writable, plan
from drone.labels import SHORT
from ray_jobs import cli


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Arguments of the job."""

    raw: tuple[Path, ...]
    """Raw folders, each with one subfolder a class."""

    out: Path
    """Folder of the data set; one that is there is updated, known pictures stay in their split."""

    dry_run: bool = False
    """Show what would be done, and write nothing."""

    json: bool = False
    """Print the result as one JSON object, last."""

    settings: Annotated[PrepareSettings, tyro.conf.arg(name="")] = field(
        default_factory=PrepareSettings
    )


def main(job: Prepare) -> cli.Result:
    """Runs the job."""
    check_writable(job.out)
    with ray_cluster.connected():
        from drone.adapters.ray_data import map_rows

        planned = plan(job.raw, job.settings, map_rows, job.out)
        show(planned)
        written = False
        if not job.dry_run:
            _, written = apply(planned, job.out, map_rows)
    if job.dry_run:
        cli.console.print(f"Nothing was written (--dry-run). Without it: {job.out}")
    elif written:
        cli.console.print(f"Wrote {job.out}, fingerprint {planned.fingerprint[:12]}")
    else:
        cli.console.print(f"{job.out} is up to date, fingerprint {planned.fingerprint[:12]}")
    return {
        "data": str(job.out),
        "fingerprint": planned.fingerprint,
        "written": written,
        "steps": _counts(planned.steps),
        "splits": _counts(planned.splits),
        "settings": asdict(job.settings),
    }


def show(planned: Plan) -> None:
    """Prints what the plan found and what it would do."""
    for folder in planned.listing.unknown_folders:
        cli.console.print(f"[yellow]{folder} means no class and is left out.[/]")
    steps = planned.steps
    # Steps that removed nothing say nothing.
    steps = steps[steps["total"] != 0]
    names = [SHORT.get(name, name) for name in steps.columns]
    cli.table("Files by class", ["step", *names], _rows(steps))
    cli.table("Splits", ["split", *names], _rows(planned.splits))
    groups = planned.near_groups
    cli.console.print(
        f"{len(groups)} groups of near duplicates hold {groups.sum()} pictures; "
        f"a group never straddles two splits."
    )


def _rows(table: pd.DataFrame) -> list[list[object]]:
    return [[name, *row] for name, row in zip(table.index, table.to_numpy(), strict=True)]


def _counts(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = table.to_dict("index")
    return counts


if __name__ == "__main__":
    cli.start(Prepare, main, __doc__)
