"""Finds image URLs with public search APIs."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from drone.collect.download import fetch_with_retries
from drone.collect.errors import FetchError
from drone.collect.folders import folder_of
from drone.collect.provenance import ImageUrl
from drone.collect.providers import PROVIDERS, ImageQuery, JsonFetcher
from drone.collect.rate_limiter import Limiter
from drone.collect.settings import FetchSettings, SearchSettings
from drone.errors import ConfigError, DataError
from drone.labels import CLASSES, ClassSet

_DEFAULT_QUERIES = dict(
    zip(
        CLASSES,
        (
            ("bird in flight", "bird of prey soaring", "gull flying", "flock of birds sky"),
            ("DJI Inspire", "DJI Matrice", "large quadcopter drone", "cinema drone"),
            ("DJI Mavic", "DJI Mini drone", "Parrot quadcopter", "small quadcopter"),
            ("fixed wing drone", "fixed-wing UAV", "MQ-9 Reaper", "Bayraktar TB2"),
        ),
        strict=True,
    )
)
"""Search terms of the default classes if the user gives no query; of others it is their name."""

_NEGATIVE_QUERIES = {
    "airplane": ("airliner in flight", "propeller plane flying", "fighter jet", "sailplane"),
    "balloon": ("hot air balloon", "toy balloon sky", "weather balloon", "airship"),
    "helicopter": ("helicopter in flight", "rescue helicopter", "military helicopter"),
    "insect": ("dragonfly in flight", "bee flying", "butterfly in flight", "mosquito"),
    "kite": ("kite flying sky", "paraglider", "hang glider", "kitesurfing"),
    "mast": ("radio mast", "construction crane sky", "wind turbine", "street lamp sky"),
    "moon": ("full moon", "crescent moon", "sun in the sky"),
    "rocket": ("rocket launch", "missile launch", "fireworks"),
    "sky": ("clear blue sky", "cloudy sky", "sunset sky", "contrail"),
    "tree": ("treetop sky", "bare branches sky", "falling leaf"),
    "wire": ("power line sky", "electricity pylon", "overhead wires", "cable car"),
}
"""Search terms of each kind of negatives: what flies or stands before the sky and is neither a
drone nor a bird, and the empty sky."""


@dataclass(frozen=True)
class ImageSearchResult:
    """Image URLs that a search found."""

    image_urls: tuple[ImageUrl, ...]
    warnings: tuple[str, ...]
    """Providers that failed, and classes with fewer URLs than requested."""


def parse_queries(
    texts: Sequence[str], classes: ClassSet = CLASSES, *, negatives: bool = False
) -> tuple[ImageQuery, ...]:
    """Parses queries of the form `CLASS=TERMS`; returns default queries if there are none.

    Args:
        texts: The queries.
        classes: The classes.
        negatives: Whether they are for negatives: `KIND=TERMS`.

    Raises:
        ConfigError: A query has another form, an unknown class or no terms.
    """
    if not texts:
        of_classes = {name: _DEFAULT_QUERIES.get(name, (name,)) for name in classes}
        queries = _NEGATIVE_QUERIES if negatives else of_classes
        return tuple(ImageQuery(name, terms) for name in queries for terms in queries[name])
    return tuple(_parse_query(text, classes, negatives) for text in texts)


def _parse_query(text: str, classes: ClassSet, negatives: bool) -> ImageQuery:
    name, separator, terms = text.partition("=")
    if not separator or not terms.strip():
        raise ConfigError(
            f"--query is {text!r}; it must be CLASS=TERMS, as in '{classes[-1]}=drone in the sky'."
        )
    try:
        return ImageQuery(folder_of(name, classes, negatives=negatives), terms.strip())
    except ConfigError as error:
        raise ConfigError(f"--query is {text!r}; {error}") from error


def json_fetcher(settings: FetchSettings, limiter: Limiter) -> JsonFetcher:
    """Returns a `JsonFetcher` with the rate limits, retries and size limits of downloads."""

    def fetch_json(url: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        separator = "&" if "?" in url else "?"
        file = fetch_with_retries(f"{url}{separator}{urlencode(parameters)}", settings, limiter)
        try:
            content = json.loads(file.data)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise FetchError("bad-answer", f"The response of {url} is not a JSON object.")
        return content

    return fetch_json


def search_images(
    queries: Sequence[ImageQuery],
    providers: Sequence[str],
    settings: SearchSettings,
    fetch_json: JsonFetcher,
) -> ImageSearchResult:
    """Searches for image URLs, with those of a class taken from all queries and providers in turn.

    A provider that fails is not queried again; what it found before is kept.

    Args:
        queries: Queries for one or several classes.
        providers: Names of `PROVIDERS`.
        settings: Number of URLs per class, and URLs of the APIs.
        fetch_json: Fetches a page of results.

    Raises:
        DataError: Nothing was found at all.
    """
    failures: dict[str, str] = {}
    image_urls: list[ImageUrl] = []
    shortfalls = []
    for class_name in dict.fromkeys(query.class_name for query in queries):
        streams = [
            _until_failure(provider, query, settings, fetch_json, failures)
            for query in queries
            if query.class_name == class_name
            for provider in dict.fromkeys(providers)
        ]
        of_class = _interleave(streams, settings.per_class)
        image_urls += of_class
        if len(of_class) < settings.per_class:
            shortfalls.append(f"{class_name}: found {len(of_class)} of {settings.per_class} URLs.")
    if not image_urls:
        hint = " ".join(failures.values()) or "Try other terms with --query 'CLASS=TERMS'."
        raise DataError(f"The search found no images. {hint}")
    return ImageSearchResult(tuple(image_urls), (*failures.values(), *shortfalls))


def _until_failure(
    provider: str,
    query: ImageQuery,
    settings: SearchSettings,
    fetch_json: JsonFetcher,
    failures: dict[str, str],
) -> Iterator[ImageUrl]:
    """Yields results until the provider is among the failures, and adds it if it fails here."""
    results = PROVIDERS[provider](query, settings, fetch_json)
    while provider not in failures:
        try:
            yield next(results)
        except StopIteration:
            return
        except FetchError as error:
            failures[provider] = f"{provider} failed and is skipped from here on: {error}"


def _interleave(streams: Iterable[Iterator[ImageUrl]], max_urls: int) -> list[ImageUrl]:
    """Returns the first `max_urls` distinct URLs, one of each stream in turn."""
    unique: dict[str, ImageUrl] = {}
    remaining = list(streams)
    while remaining and len(unique) < max_urls:
        stream = remaining.pop(0)
        image_url = next(stream, None)
        if image_url is not None:
            unique.setdefault(image_url.url, image_url)
            remaining.append(stream)
    return list(unique.values())
