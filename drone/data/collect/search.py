"""Urls of pictures from public searches that need no key, each with its licence.

Openverse (https://api.openverse.org) and Wikimedia Commons (https://commons.wikimedia.org).
"""

import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from drone.data.collect.download import Limiter, get
from drone.data.collect.provenance import Wanted
from drone.data.collect.settings import FetchError, FetchSettings
from drone.errors import ConfigError, DataError
from drone.labels import CLASSES, match_class, nearest

DEFAULT_QUERIES = {
    "Flying Birds": ("bird in flight", "bird of prey soaring", "gull flying", "flock of birds sky"),
    "Large QuadCopters": ("DJI Inspire", "DJI Matrice", "large quadcopter drone", "cinema drone"),
    "Small QuadCopters": ("DJI Mavic", "DJI Mini drone", "Parrot quadcopter", "small quadcopter"),
    "Winged Drones": ("fixed wing drone", "fixed-wing UAV", "MQ-9 Reaper", "Bayraktar TB2"),
}
"""What is searched for a class unless a query is given."""

_OPENVERSE_PAGE = 20  # The most that it gives without a key.
_COMMONS_PAGE = 50
_MAX_PAGES = 100
"""Pages of one query; a server that never comes to an end is left there."""

_READABLE = ("jpeg", "jpg", "png", "gif", "webp", "tiff", "tif", "bmp", "avif")


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Where to search, and for how much."""

    per_class: int = 200
    """Urls for each class, over all searches and queries together."""

    openverse_url: str = "https://api.openverse.org/v1/images/"
    """Address of Openverse's search, or of a mirror."""

    commons_url: str = "https://commons.wikimedia.org/w/api.php"
    """Address of Wikimedia Commons' interface, or of a mirror."""

    def __post_init__(self) -> None:
        if self.per_class < 1:
            raise ConfigError(f"--per-class is {self.per_class}; it must be at least 1.")


@dataclass(frozen=True)
class Query:
    """Words to search for pictures of a class."""

    class_name: str
    words: str


@dataclass(frozen=True)
class Found:
    """What the searches gave."""

    wanted: tuple[Wanted, ...]
    notes: tuple[str, ...]
    """What did not go as asked: a search that failed, a class with too few urls."""


Ask = Callable[[str, Mapping[str, Any]], dict[str, Any]]
"""Gives the JSON at an address with parameters; raises FetchError."""


def parse_queries(texts: Sequence[str]) -> tuple[Query, ...]:
    """Queries from `CLASS=WORDS`; the defaults of all four classes if there are none.

    Raises:
        ConfigError: no such form, no such class, or no words.
    """
    if not texts:
        return tuple(Query(name, words) for name in CLASSES for words in DEFAULT_QUERIES[name])
    return tuple(_parse_query(text) for text in texts)


def _parse_query(text: str) -> Query:
    name, equals, words = text.partition("=")
    if not equals or not words.strip():
        raise ConfigError(
            f"--query is {text!r}; wanted is CLASS=WORDS, as in 'Winged Drones=fixed wing drone'."
        )
    class_name = match_class(name)
    if class_name is None:
        like = nearest(name, CLASSES)
        hint = f" Did you mean {like!r}?" if like else f" Classes: {', '.join(CLASSES)}."
        raise ConfigError(f"--query {text!r} names no class.{hint}")
    return Query(class_name, words.strip())


def asking(settings: FetchSettings, limiter: Limiter) -> Ask:
    """An `Ask` over the web, at the pace and within the limits of every other request."""

    def ask(address: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        joint = "&" if "?" in address else "?"
        fetched = get(f"{address}{joint}{urlencode(parameters)}", settings, limiter)
        try:
            answer = json.loads(fetched.data)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise FetchError("bad-answer", f"{address} gives no JSON object.")
        return answer

    return ask


def search(
    queries: Sequence[Query], providers: Sequence[str], settings: SearchSettings, ask: Ask
) -> Found:
    """Urls for the classes of the queries, taken from all queries and providers in turn.

    Args:
        queries: of one or several classes.
        providers: names of PROVIDERS.
        settings: where, and how many.
        ask: how to get an answer.

    Raises:
        DataError: nothing was found at all.
    """
    notes: dict[str, str] = {}
    wanted: list[Wanted] = []
    short = []
    for class_name in dict.fromkeys(query.class_name for query in queries):
        streams = [
            _until_failure(provider, query, settings, ask, notes)
            for query in queries
            if query.class_name == class_name
            for provider in dict.fromkeys(providers)
        ]
        found = _in_turn(streams, settings.per_class)
        wanted += found
        if len(found) < settings.per_class:
            short.append(f"{class_name}: {len(found)} urls of {settings.per_class} were found.")
    if not wanted:
        said = " ".join(notes.values()) or "Try other words with --query 'CLASS=WORDS'."
        raise DataError(f"The search found no picture. {said}")
    return Found(tuple(wanted), (*notes.values(), *short))


def _until_failure(
    provider: str, query: Query, settings: SearchSettings, ask: Ask, notes: dict[str, str]
) -> Iterator[Wanted]:
    """Results of one provider; after it failed once, none for any later query."""
    results = PROVIDERS[provider](query, settings, ask)
    while provider not in notes:
        try:
            yield next(results)
        except StopIteration:
            return
        except FetchError as error:
            notes[provider] = f"{provider} failed and is left out from there on: {error}"


def _in_turn(streams: Iterable[Iterator[Wanted]], number: int) -> list[Wanted]:
    """The first `number` different urls, one of each stream in turn."""
    found: dict[str, Wanted] = {}
    left = list(streams)
    while left and len(found) < number:
        stream = left.pop(0)
        result = next(stream, None)
        if result is not None:
            found.setdefault(result.url, result)
            left.append(stream)
    return list(found.values())


def openverse(query: Query, settings: SearchSettings, ask: Ask) -> Iterator[Wanted]:
    """Results of Openverse, page by page."""
    for page in range(1, _MAX_PAGES + 1):
        parameters = {"q": query.words, "page": page, "page_size": _OPENVERSE_PAGE}
        try:
            answer = ask(settings.openverse_url, parameters)
        except FetchError as error:
            # Without a key it refuses pages far down: for this query, that is all there is.
            if page > 1 and error.reason in ("http-400", "http-401", "http-403", "http-404"):
                return
            raise
        for result in _dictionaries(answer.get("results")):
            wanted = _from_openverse(result, query.class_name)
            if wanted is not None:
                yield wanted
        if page >= _whole(answer.get("page_count")):
            return


def _from_openverse(result: Mapping[str, Any], class_name: str) -> Wanted | None:
    url, licence = _text(result.get("url")), _text(result.get("license"))
    kind = _text(result.get("filetype"))
    if not url or not licence or (kind and kind not in _READABLE):
        return None
    version = _text(result.get("license_version"))
    return Wanted(
        url=url,
        class_name=class_name,
        source="/".join(filter(None, ["openverse", _text(result.get("source"))])),
        licence=_creative_commons(licence, version),
        creator=_text(result.get("creator")),
        attribution=_text(result.get("attribution")),
        landing_page=_text(result.get("foreign_landing_url")),
    )


def _creative_commons(licence: str, version: str) -> str:
    """As people write it: "by-sa", "2.0" -> "CC BY-SA 2.0"."""
    names = {"cc0": "CC0", "pdm": "Public Domain Mark"}
    return f"{names.get(licence, f'CC {licence.upper()}')} {version}".strip()


def commons(query: Query, settings: SearchSettings, ask: Ask) -> Iterator[Wanted]:
    """Results of Wikimedia Commons, as long as it has a `continue`."""
    parameters: dict[str, Any] = {
        "action": "query",
        "format": "json",
        "formatversion": 2,
        "generator": "search",
        "gsrsearch": f"{query.words} filetype:bitmap",
        "gsrnamespace": 6,
        "gsrlimit": _COMMONS_PAGE,
        "prop": "imageinfo",
        "iiprop": "url|size|mime|extmetadata",
    }
    going_on: dict[str, Any] = {}
    for _ in range(_MAX_PAGES):
        answer = ask(settings.commons_url, {**parameters, **going_on})
        if "error" in answer:
            raise FetchError("bad-answer", f"{settings.commons_url}: {answer['error']}")
        yield from _from_commons(answer, query.class_name)
        if not isinstance(answer.get("continue"), dict):
            return
        going_on = answer["continue"]


def _from_commons(answer: Mapping[str, Any], class_name: str) -> Iterator[Wanted]:
    content = answer.get("query")
    pages = content.get("pages") if isinstance(content, dict) else []
    pages = _dictionaries(pages.values() if isinstance(pages, dict) else pages)
    for page in sorted(pages, key=lambda page: _whole(page.get("index"))):
        for image in _dictionaries(page.get("imageinfo"))[:1]:
            wanted = _from_image(image, class_name)
            if wanted is not None:
                yield wanted


def _from_image(image: Mapping[str, Any], class_name: str) -> Wanted | None:
    about = image.get("extmetadata")
    values = about if isinstance(about, dict) else {}
    licence = _said(values, "LicenseShortName") or _said(values, "UsageTerms")
    url, kind = _text(image.get("url")), _text(image.get("mime"))
    if not url or not licence or (kind and kind.removeprefix("image/") not in _READABLE):
        return None
    return Wanted(
        url=url,
        class_name=class_name,
        source="commons",
        licence=licence,
        creator=_said(values, "Artist"),
        attribution=_said(values, "Attribution") or _said(values, "Credit"),
        landing_page=_text(image.get("descriptionurl")),
    )


PROVIDERS: Mapping[str, Callable[[Query, SearchSettings, Ask], Iterator[Wanted]]] = {
    "openverse": openverse,
    "commons": commons,
}


def _said(values: Mapping[str, Any], name: str) -> str:
    """A value of Commons' metadata, without its HTML."""
    entry = values.get(name)
    marked_up = _text(entry.get("value")) if isinstance(entry, dict) else ""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", marked_up)).split())


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _dictionaries(values: object) -> list[dict[str, Any]]:
    """What an answer should hold in a list; anything else in it is passed over."""
    several = values if isinstance(values, Iterable) and not isinstance(values, str) else []
    return [value for value in several if isinstance(value, dict)]
