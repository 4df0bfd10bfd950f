"""Collects pictures from the web into a raw folder: from a table of urls, or from public searches.

    python ray_jobs/collect.py --out raw --table urls.csv
    python ray_jobs/collect.py --out raw --search openverse commons --contact me@example.org
    python ray_jobs/collect.py --out raw --search commons --query "Winged Drones=fixed wing drone"
    RAY_ADDRESS=auto python ray_jobs/collect.py --out raw --table urls.parquet       (a cluster)

Nothing is written with --dry-run. The same command again goes on where it was stopped. Where each
picture comes from and under which licence is in provenance.jsonl. Next: prepare.py --raw raw
"""

import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
PLACES = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(place for place in PLACES if (place / "drone").is_dir())))

import tyro

from drone.adapters import ray_cluster
from drone.data.collect import provenance
from drone.data.collect import search as picture_search
from drone.data.collect.download import RateLimiter
from drone.data.collect.provenance import Wanted
from drone.data.collect.raw_set import Plan, Tally, check_writable, collect, plan, read_table, tally
from drone.data.collect.search import SearchSettings
from drone.data.collect.settings import FetchSettings
from drone.errors import ConfigError, DataError, Interrupted
from drone.labels import SHORT
from ray_jobs import cli

_HOSTS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Collect:
    """Arguments of the job."""

    out: Path
    """Raw folder, one subfolder a class; one that was collected before is added to."""

    table: tuple[Path, ...] = ()
    """CSV or parquet files with the columns url, class, source and licence."""

    search: tuple[Literal["openverse", "commons"], ...] = ()
    """Public searches to ask for urls; they give the licence with each."""

    query: tuple[str, ...] = ()
    """What to search, as "CLASS=WORDS"; only these classes then. Else all four, with own words."""

    retry_failed: bool = False
    """Try again what failed in an earlier run."""

    dry_run: bool = False
    """Show what would be fetched, by host and class, and write nothing."""

    json: bool = False
    """Print the result as one JSON object, last."""

    searches: Annotated[SearchSettings, tyro.conf.arg(name="")] = field(
        default_factory=SearchSettings
    )
    fetching: Annotated[FetchSettings, tyro.conf.arg(name="")] = field(
        default_factory=FetchSettings
    )

    def __post_init__(self) -> None:
        if not self.table and not self.search:
            raise ConfigError("Say where from: --table FILE, or --search openverse commons.")
        if self.query and not self.search:
            raise ConfigError("--query needs --search: name openverse, commons or both.")


def main(job: Collect) -> cli.Result:
    """Runs the job."""
    check_writable(job.out)
    wanted = _wanted(job)
    planned = plan(wanted, provenance.standing(job.out), retry_failed=job.retry_failed)
    _show_plan(planned, job.fetching)
    if job.dry_run:
        cli.console.print(f"Nothing was written (--dry-run). Without it: {job.out}")
    elif planned.todo:
        _download(planned, job)
    tallies = tally(planned.wanted, provenance.standing(job.out))
    if not job.dry_run:
        _show_result(tallies, job.out)
    return {
        "out": str(job.out),
        "dry_run": job.dry_run,
        "todo": len(planned.todo),
        "hosts": planned.hosts,
        "classes": {name: asdict(counts) for name, counts in tallies.items()},
    }


def _wanted(job: Collect) -> list[Wanted]:
    queries = picture_search.parse_queries(job.query)
    wanted = [one for file in job.table for one in read_table(file)]
    unlicensed = sum(not one.licence for one in wanted)
    if unlicensed:
        cli.console.print(f"[yellow]{unlicensed} urls of the table have no licence.[/]")
    if job.search:
        with cli.console.status("searching"):
            ask = picture_search.asking(job.fetching, RateLimiter(job.fetching.per_host_per_s))
            found = picture_search.search(queries, job.search, job.searches, ask)
        for note in found.notes:
            cli.console.print(note, style="yellow", markup=False, soft_wrap=True)
        wanted += found.wanted
    return wanted


def _download(planned: Plan, job: Collect) -> None:
    try:
        with ray_cluster.connected():
            from drone.adapters.ray_collect import download_all

            records = collect(planned.todo, job.out, job.fetching, download_all)
            numbers = (number for number, _ in enumerate(records))
            for _ in cli.track(numbers, "collecting", len(planned.todo)):
                pass
    except KeyboardInterrupt:
        raise Interrupted(
            f"{job.out} keeps what was collected; the same command goes on from there."
        ) from None


def _show_plan(planned: Plan, settings: FetchSettings) -> None:
    hosts = planned.hosts
    names = list(dict.fromkeys(one.class_name for one in planned.wanted))
    rows = [_row(host, counts, names) for host, counts in list(hosts.items())[:_HOSTS_SHOWN]]
    if len(hosts) > _HOSTS_SHOWN:
        rest = sum(list(hosts.values())[_HOSTS_SHOWN:], Counter[str]())
        rows.append(_row(f"{len(hosts) - _HOSTS_SHOWN} more hosts", rest, names))
    rows.append(_row("all", Counter(one.class_name for one in planned.todo), names))
    columns = [SHORT.get(name, name) for name in names]
    cli.table("Urls to fetch, by host", ["host", *columns, "total"], rows)
    done = len(planned.wanted) - len(planned.todo)
    cli.console.print(
        f"{done} of {len(planned.wanted)} urls are done already. At {settings.per_host_per_s:g} "
        f"requests/s to a host the rest takes at least {planned.least_s(settings) / 60:.1f} min."
    )


def _row(label: str, counts: Counter[str], names: list[str]) -> list[object]:
    return [label, *(counts[name] for name in names), counts.total()]


def _show_result(tallies: dict[str, Tally], out: Path) -> None:
    names = list(tallies)
    rows = [
        _row(label, Counter({name: getattr(tallies[name], label) for name in names}), names)
        for label in ("wanted", "kept", "pictures")
    ]
    reasons = sum((Counter(counts.failed) for counts in tallies.values()), Counter[str]())
    for reason, _ in reasons.most_common():
        failed = Counter({name: tallies[name].failed.get(reason, 0) for name in names})
        rows.append(_row(f"failed: {reason}", failed, names))
    columns = [SHORT.get(name, name) for name in names]
    cli.table("Urls by class", ["", *columns, "total"], rows)
    if not any(counts.kept for counts in tallies.values()):
        raise DataError(
            f"No url gave a picture. {out / provenance.NAME} says why for each; "
            f"--retry-failed tries them again."
        )
    if reasons:
        cli.console.print(f"Why, url by url: {out / provenance.NAME}. Again: --retry-failed")
    cli.console.print(f"Next: python ray_jobs/prepare.py --raw {out} --out DATASET")


if __name__ == "__main__":
    cli.start(Collect, main, __doc__)
