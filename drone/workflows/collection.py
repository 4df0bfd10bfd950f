"""Collects images from the web into a raw folder: plans, downloads and counts."""

from dataclasses import dataclass, field

from drone.cluster import connection
from drone.collect import provenance
from drone.collect.provenance import ImageUrl
from drone.collect.rate_limiter import RateLimiter
from drone.collect.raw_folder import (
    ClassCounts,
    CollectionPlan,
    check_unmixed,
    check_writable,
    collect,
    count_by_class,
    plan_collection,
)
from drone.collect.search import json_fetcher, parse_queries, search_images
from drone.collect.settings import FetchSettings, SearchSettings
from drone.collect.url_table import read_table
from drone.data.prepare.class_source import named_classes
from drone.errors import Interrupted
from drone.labels import CLASSES, ClassSet
from drone.workflows.display import SILENT, Display
from drone.workflows.requests import CollectRequest


@dataclass(frozen=True, kw_only=True)
class CollectSettings:
    """Settings of the searches and downloads."""

    search: SearchSettings = field(default_factory=SearchSettings)
    fetch: FetchSettings = field(default_factory=FetchSettings)


def plan(
    request: CollectRequest,
    settings: CollectSettings = CollectSettings(),
    display: Display = SILENT,
) -> CollectionPlan:
    """Reads tables and searches for URLs, and decides which of them to download.

    Raises:
        DataError: The raw folder holds something else, or a table cannot be read.
        ConfigError: A query is wrong.
    """
    # Before the searches, which take minutes and count against the limits of their sites.
    check_writable(request.out)
    records = provenance.latest_records(request.out)
    check_unmixed(request.out, records, _classes(request), negatives=request.negatives)
    image_urls = _image_urls(request, settings, display)
    return plan_collection(image_urls, records, retry_failed=request.retry_failed)


def _image_urls(
    request: CollectRequest, settings: CollectSettings, display: Display
) -> list[ImageUrl]:
    classes = _classes(request)
    queries = parse_queries(request.query, classes, negatives=request.negatives)
    image_urls = [
        image_url
        for file in request.table
        for image_url in read_table(file, classes, negatives=request.negatives)
    ]
    num_unlicensed = sum(not image_url.licence for image_url in image_urls)
    if num_unlicensed:
        display.warn(f"{num_unlicensed} URLs of the table have no licence.")
    if request.search:
        display.show(f"Searching {' and '.join(request.search)} ...")
        # Searches ask other hosts than downloads do, so they need no common limiter.
        fetch_json = json_fetcher(settings.fetch, RateLimiter(settings.fetch.requests_per_s))
        result = search_images(queries, request.search, settings.search, fetch_json)
        for warning in result.warnings:
            display.warn(warning)
        image_urls += result.image_urls
    return image_urls


def download(
    planned: CollectionPlan,
    request: CollectRequest,
    settings: CollectSettings = CollectSettings(),
    display: Display = SILENT,
) -> None:
    """Downloads the pending URLs of a plan on Ray, and stores each image with its record.

    Raises:
        Interrupted: It was stopped; what was collected is kept.
        DataError: Another process is collecting into the folder, or it cannot be written.
    """
    if not planned.pending:
        return
    try:
        with connection.connected():
            # Ray takes seconds to import, which a dry run or a finished collection does not need.
            from drone.cluster.collect import download_all

            records = collect(planned.pending, request.out, settings.fetch, download_all)
            numbers = (number for number, _ in enumerate(records))
            # The loop drives the downloads: each image is stored before the next is requested.
            for _ in display.track(numbers, "collecting", len(planned.pending)):
                pass
    except KeyboardInterrupt:
        raise Interrupted(
            f"Collecting was stopped; {request.out} keeps what was collected. Run the same "
            f"command again to continue."
        ) from None


def results(planned: CollectionPlan, request: CollectRequest) -> dict[str, ClassCounts]:
    """Counts the results by class, over this run and earlier ones."""
    records = provenance.latest_records(request.out)
    return count_by_class(planned.image_urls, records, _classes(request))


def _classes(request: CollectRequest) -> ClassSet:
    return named_classes(request.classes) if request.classes else CLASSES
