"""Makes a data set of raw pictures: scan, clean, group near duplicates, split, pack, audit.

    python ray_jobs/prepare.py --raw pictures --out data/drones --dry-run   (what would be done)
    python ray_jobs/prepare.py --raw pictures more.zip s3://bucket/raw --out data/drones
    python ray_jobs/prepare.py --raw pictures --out data/drones --decisions decisions.jsonl
    python ray_jobs/prepare.py --raw pictures --out data/drones --bins      (for preset multires)
    python ray_jobs/prepare.py --out data/drones --undo
    python ray_jobs/prepare.py --diff data/drones@1f2e3d data/drones
    RAY_ADDRESS=auto python ray_jobs/prepare.py --raw /shared/raw --out /shared/drones  (a cluster)

Raw pictures lie in one folder a class: in a folder, a zip archive or object storage, or several of
them. They are only read. Nothing but a cache of what was seen is written with --dry-run.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
PLACES = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(place for place in PLACES if (place / "drone").is_dir())))

import pandas as pd
import tyro

from drone.adapters import dataset_cache, ray_cluster
from drone.adapters.raw_roots import open_root
from drone.data import history, ledger
from drone.data.bins import sides_of
from drone.data.prepare import Mapper, Plan, PrepareSettings, Row, plan
from drone.data.writing import apply, check_writable, undo
from drone.errors import ConfigError
from drone.labels import SHORT
from ray_jobs import cli

_SHOWN = 20
"""Lines of a comparison on the screen."""


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Arguments of the job."""

    raw: tuple[str, ...] = ()
    """Folders, zip archives or URIs (s3://...), each with one folder a class."""

    out: Path | None = None
    """Folder of the data set; one that is there is updated, known pictures stay in their split."""

    dry_run: bool = False
    """Show what would be done, and write no data set."""

    decisions: Path | None = None
    """What a person decided, as review.py's page exports it (JSON lines); goes into the ledger."""

    bins: bool = False
    """Pack each picture at the bin of its own size (224 to 3584 px) too, for the preset multires;
    takes up to 38 MB a picture. A data set that has them keeps them."""

    undo: bool = False
    """Go back to the version of --out before this one; its raw files must still be there."""

    diff: tuple[str, str] | None = None
    """Show what differs between two data sets; FOLDER@FINGERPRINT is an earlier version."""

    json: bool = False
    """Print the result as one JSON object, last."""

    settings: Annotated[PrepareSettings, tyro.conf.arg(name="")] = field(
        default_factory=PrepareSettings
    )

    def __post_init__(self) -> None:
        if self.diff is not None:
            if self.raw or self.out or self.undo:
                raise ConfigError("--diff compares two data sets and takes nothing else.")
            return
        if self.out is None:
            raise ConfigError("--out is missing: the folder of the data set.")
        if self.undo and (self.raw or self.decisions or self.dry_run or self.bins):
            raise ConfigError("--undo needs --out alone: the raw folders are known.")
        if not self.undo and not self.raw:
            raise ConfigError("--raw is missing: the folders with the collected pictures.")


def main(job: Prepare) -> cli.Result:
    """Runs the job."""
    if job.diff is not None:
        return compare(*job.diff)
    assert job.out is not None
    check_writable(job.out)
    with _mapper() as mapper:
        if job.undo:
            dataset = undo(job.out, mapper, open_root)
            cli.console.print(f"{job.out} is the version {dataset.fingerprint[:12]} again.")
            return {"data": str(job.out), "fingerprint": dataset.fingerprint, "written": True}
        return prepare(job, job.out, mapper)


@contextlib.contextmanager
def _mapper() -> Iterator[Mapper]:
    """Maps on Ray, which is only started when there is something to map."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def connect() -> None:
            stack.enter_context(ray_cluster.connected())

        def mapper(function: Callable[[Row], Row], rows: Sequence[Row], label: str) -> list[Row]:
            from drone.adapters.ray_data import map_rows

            connect()
            return map_rows(function, rows, label)

        yield mapper


def prepare(job: Prepare, out: Path, mapper: Mapper) -> cli.Result:
    """Plans the data set and writes it."""
    decisions = ledger.read_by_hand(job.decisions, job.settings.classes) if job.decisions else []
    planned = plan(
        job.raw,
        job.settings,
        mapper,
        out,
        by_hand=decisions,
        cache=dataset_cache.cache_folder("scans"),
        opener=open_root,
    )
    show(planned)
    if job.bins:
        show_bins(planned)
    if job.decisions:
        missing = len({decision.md5 for decision in decisions} - set(planned.frame["md5"]))
        cli.console.print(
            f"{job.decisions}: {len(decisions)} decisions, {len(planned.by_hand)} of them new, "
            f"{missing} on pictures that are not in the raw folders."
        )
    written = False
    if not job.dry_run:
        _, written = apply(planned, out, mapper, bins=job.bins)
    if job.dry_run:
        cli.console.print(f"Nothing was written (--dry-run). Without it: {out}")
    elif written:
        cli.console.print(f"Wrote {out}, fingerprint {planned.fingerprint[:12]}")
        cli.console.print(f"What is in it: {out / 'audit.html'}", soft_wrap=True)
    else:
        cli.console.print(f"{out} is up to date, fingerprint {planned.fingerprint[:12]}")
    return {
        "data": str(out),
        "fingerprint": planned.fingerprint,
        "written": written,
        "steps": _counts(planned.steps),
        "splits": _counts(planned.splits),
        "as_the_original_counted": _counts(planned.seed_counts),
        "settings": asdict(job.settings),
    }


def show(planned: Plan) -> None:
    """Prints what the plan found and what it would do."""
    for folder in planned.unknown_folders:
        cli.console.print(f"[yellow]{folder} means no class and is left out.[/]")
    steps = planned.steps
    # Steps that did nothing say nothing.
    steps = steps[steps.ne(0).any(axis=1)]
    names = [SHORT.get(name, name) for name in steps.columns]
    cli.table("Files by class", ["step", *names], _rows(steps))
    if planned.settings.policy == "seed":
        counts = _rows(planned.seed_counts)
        cli.table("As the original counted, a file in several rows", ["flag", *names], counts)
    cli.table("Splits", ["split", *names], _rows(planned.splits))
    groups = planned.near_groups
    cli.console.print(
        f"{len(groups)} groups of near duplicates hold {groups.sum()} pictures; "
        f"a group never straddles two splits."
    )


def show_bins(planned: Plan) -> None:
    """Prints how many pictures each bin would get, and how much they take."""
    packed = planned.frame[planned.frame["pixel_row"] >= 0]
    counts = pd.Series(sides_of(packed)).value_counts().sort_index()
    rows = [[side, count, count * side**2 * 3 / 1e9] for side, count in counts.items()]
    cli.table("Bins", ["side", "pictures", "GB"], rows)


def compare(first: str, second: str) -> cli.Result:
    """Prints what differs between two data sets."""
    old, new = history.find(first), history.find(second)
    changes = history.diff(old, new)
    counts = changes["change"].value_counts()
    if changes.empty:
        cli.console.print(f"No file differs between {first} and {second}.")
    else:
        cli.table(f"From {first} to {second}", ["change", "files"], list(counts.items()))
        lines = changes[["path", "change", "before", "after"]].head(_SHOWN).to_numpy().tolist()
        cli.table(f"The first {len(lines)}", ["path", "change", "before", "after"], lines)
    return {
        "fingerprints": [old.fingerprint, new.fingerprint],
        "counts": {str(name): int(count) for name, count in counts.items()},
        "changes": changes.to_dict("records"),
    }


def _rows(table: pd.DataFrame) -> list[list[object]]:
    return [[name, *row] for name, row in zip(table.index, table.to_numpy(), strict=True)]


def _counts(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = table.to_dict("index")
    return counts


if __name__ == "__main__":
    cli.start(Prepare, main, __doc__)
