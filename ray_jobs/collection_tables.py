"""Prints what a collection will download, and what it has downloaded."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from drone.commands import command
from drone.errors import DataError
from drone.labels import short_names
from ray_jobs import console

if TYPE_CHECKING:  # They import Pillow and more, which --help must not wait for.
    from drone.collect.raw_folder import ClassCounts, CollectionPlan
    from drone.collect.settings import FetchSettings

_MAX_HOSTS = 20
"""Maximum number of hosts on the screen."""


def show_plan(plan: "CollectionPlan", settings: "FetchSettings") -> None:
    """Prints the URLs to download by host and class, and how long that takes at least."""
    hosts = list(plan.hosts.items())
    names = list(dict.fromkeys(image_url.class_name for image_url in plan.image_urls))
    rows = [_row(host, counts, names) for host, counts in hosts[:_MAX_HOSTS]]
    if len(hosts) > _MAX_HOSTS:
        rest = sum((counts for _, counts in hosts[_MAX_HOSTS:]), Counter[str]())
        rows.append(_row(f"{len(hosts) - _MAX_HOSTS} more hosts", rest, names))
    rows.append(_row("all", Counter(image_url.class_name for image_url in plan.pending), names))
    console.table("URLs to download, by host", ["host", *short_names(names), "total"], rows)
    num_done = len(plan.image_urls) - len(plan.pending)
    console.show(
        f"{num_done} of {len(plan.image_urls)} URLs are done already. At "
        f"{settings.requests_per_s:g} requests/s to a host the rest takes at least "
        f"{plan.min_duration_s(settings) / 60:.1f} min."
    )


def show_results(counts: Mapping[str, "ClassCounts"], out: Path) -> None:
    """Prints the results by class.

    Raises:
        DataError: No URL gave an image.
    """
    names = list(counts)
    rows = [
        _row(label, Counter({name: getattr(counts[name], label) for name in names}), names)
        for label in ("urls", "kept", "images")
    ]
    reasons = sum((Counter(counts[name].failed) for name in names), Counter[str]())
    for reason, _ in reasons.most_common():
        failed = Counter({name: counts[name].failed.get(reason, 0) for name in names})
        rows.append(_row(f"failed: {reason}", failed, names))
    console.table("Results by class", ["", *short_names(names), "total"], rows)
    details = out / "provenance.jsonl"
    if not any(class_counts.kept for class_counts in counts.values()):
        # Only after the table, which has the number of URLs for each reason.
        raise DataError(
            f"No URL gave an image. {details} has the reason for each; --retry-failed tries them "
            f"again."
        )
    if reasons:
        console.show(f"The reason for each URL is in {details}. To try again: --retry-failed")
    console.show(f"Next: {command('prepare', raw=[out], out='DATASET')}")


def _row(label: str, counts: "Counter[str]", names: list[str]) -> list[object]:
    return [label, *(counts[name] for name in names), counts.total()]
