"""Prints what a collection will download, and what it has downloaded."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from drone.commands import command
from drone.errors import DataError
from drone.labels import abbreviated
from ray_jobs import console

if TYPE_CHECKING:  # They import Pillow and more, which --help must not wait for.
    from drone.collect.raw_folder import ClassCounts, CollectionPlan
    from drone.collect.settings import FetchSettings

_MAX_HOSTS = 20
"""Maximum number of hosts on the screen."""

_MAX_COLUMNS = 6
"""Maximum number of classes or kinds with a column of their own; others are only in the total."""


def show_plan(plan: "CollectionPlan", settings: "FetchSettings") -> None:
    """Prints the URLs to download by host and class, and how long that takes at least."""
    hosts = list(plan.hosts.items())
    names = _columns(dict.fromkeys(image_url.class_name for image_url in plan.image_urls))
    rows = [_row(host, counts, names) for host, counts in hosts[:_MAX_HOSTS]]
    if len(hosts) > _MAX_HOSTS:
        rest = sum((counts for _, counts in hosts[_MAX_HOSTS:]), Counter[str]())
        rows.append(_row(f"{len(hosts) - _MAX_HOSTS} more hosts", rest, names))
    rows.append(_row("all", Counter(image_url.class_name for image_url in plan.pending), names))
    console.table("URLs to download, by host", ["host", *abbreviated(names), "total"], rows)
    num_done = len(plan.image_urls) - len(plan.pending)
    console.show(
        f"{num_done} of {len(plan.image_urls)} URLs are done already. At "
        f"{settings.requests_per_s:g} requests/s to a host the rest takes at least "
        f"{plan.min_duration_s(settings) / 60:.1f} min."
    )


def show_results(counts: Mapping[str, "ClassCounts"], out: Path, *, negatives: bool) -> None:
    """Prints the results by class or by kind.

    Args:
        counts: Results by class, or by kind of negatives.
        out: Raw folder.
        negatives: Whether it is one of negatives.

    Raises:
        DataError: No URL gave an image.
    """
    names = _columns(counts)
    if len(names) < len(counts):
        by_kind = [[name, kind.urls, kind.kept, kind.images] for name, kind in counts.items()]
        console.table("Results by kind", ["kind", "urls", "kept", "images"], by_kind)
    rows = [
        _row(label, Counter({name: getattr(each, label) for name, each in counts.items()}), names)
        for label in ("urls", "kept", "images")
    ]
    reasons = sum((Counter(each.failed) for each in counts.values()), Counter[str]())
    for reason, _ in reasons.most_common():
        failed = Counter({name: each.failed.get(reason, 0) for name, each in counts.items()})
        rows.append(_row(f"failed: {reason}", failed, names))
    console.table("Results", ["", *abbreviated(names), "total"], rows)
    details = out / "provenance.jsonl"
    if not any(class_counts.kept for class_counts in counts.values()):
        # Only after the table, which has the number of URLs for each reason.
        raise DataError(
            f"No URL gave an image. {details} has the reason for each; --retry-failed tries them "
            f"again."
        )
    if reasons:
        console.show(f"The reason for each URL is in {details}. To try again: --retry-failed")
    roots = {"raw": ["RAW_FOLDER"], "negatives": [out]} if negatives else {"raw": [out]}
    console.show(f"Next: {command('prepare', **roots, out='DATASET')}")


def _columns(names: Iterable[str]) -> list[str]:
    """Returns the names that have a column: all, or none if a screen is too narrow for them."""
    listed = list(names)
    return listed if len(listed) <= _MAX_COLUMNS else []


def _row(label: str, counts: "Counter[str]", names: list[str]) -> list[object]:
    return [label, *(counts[name] for name in names), counts.total()]
