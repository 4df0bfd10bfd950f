"""Search APIs that need no key and give the licence of each image.

Openverse (https://api.openverse.org) and Wikimedia Commons (https://commons.wikimedia.org).
"""

import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from drone.collect.errors import FetchError
from drone.collect.provenance import ImageUrl
from drone.collect.settings import SearchSettings

_OPENVERSE_PAGE_SIZE = 20  # Maximum without an API key.
_COMMONS_PAGE_SIZE = 50
_MAX_PAGES = 100
"""Maximum number of pages per query, for a server that never says which page is the last."""

_FORMATS = ("jpeg", "jpg", "png", "gif", "webp", "tiff", "tif", "bmp", "avif")
"""File types that preprocessing can decode."""


@dataclass(frozen=True)
class ImageQuery:
    """Search terms for images of a class."""

    class_name: str
    terms: str


JsonFetcher = Callable[[str, Mapping[str, Any]], dict[str, Any]]
"""Returns the JSON object at a URL with query parameters; raises FetchError."""

Provider = Callable[[ImageQuery, SearchSettings, JsonFetcher], Iterator[ImageUrl]]
"""Yields the results of a query, and fetches further pages as needed; raises FetchError."""


def search_openverse(
    query: ImageQuery, settings: SearchSettings, fetch_json: JsonFetcher
) -> Iterator[ImageUrl]:
    """A `Provider` of images from Openverse."""
    for page in range(1, _MAX_PAGES + 1):
        parameters = {"q": query.terms, "page": page, "page_size": _OPENVERSE_PAGE_SIZE}
        try:
            response = fetch_json(settings.openverse_url, parameters)
        except FetchError as error:
            # Openverse refuses later pages without an API key, so the results end here.
            if page > 1 and error.reason in ("http-400", "http-401", "http-403", "http-404"):
                return
            raise
        for result in _dicts(response.get("results")):
            image_url = _from_openverse(result, query.class_name)
            if image_url is not None:
                yield image_url
        if page >= _integer(response.get("page_count")):
            return


def _from_openverse(result: Mapping[str, Any], class_name: str) -> ImageUrl | None:
    url, licence = _text(result.get("url")), _text(result.get("license"))
    file_type = _text(result.get("filetype"))
    if not url or not licence or (file_type and file_type not in _FORMATS):
        return None
    return ImageUrl(
        url=url,
        class_name=class_name,
        source="/".join(filter(None, ["openverse", _text(result.get("source"))])),
        licence=_creative_commons_name(licence, _text(result.get("license_version"))),
        creator=_text(result.get("creator")),
        attribution=_text(result.get("attribution")),
        landing_page=_text(result.get("foreign_landing_url")),
    )


def _creative_commons_name(licence: str, version: str) -> str:
    """Returns the usual name of a licence code: "by-sa", "2.0" -> "CC BY-SA 2.0"."""
    names = {"cc0": "CC0", "pdm": "Public Domain Mark"}
    return f"{names.get(licence, f'CC {licence.upper()}')} {version}".strip()


def search_commons(
    query: ImageQuery, settings: SearchSettings, fetch_json: JsonFetcher
) -> Iterator[ImageUrl]:
    """A `Provider` of images from Wikimedia Commons."""
    parameters: dict[str, Any] = {
        "action": "query",
        "format": "json",
        "formatversion": 2,
        "generator": "search",
        "gsrsearch": f"{query.terms} filetype:bitmap",
        "gsrnamespace": 6,
        "gsrlimit": _COMMONS_PAGE_SIZE,
        "prop": "imageinfo",
        "iiprop": "url|size|mime|extmetadata",
    }
    continuation: dict[str, Any] = {}
    for _ in range(_MAX_PAGES):
        response = fetch_json(settings.commons_url, {**parameters, **continuation})
        if "error" in response:
            raise FetchError("bad-answer", f"{settings.commons_url}: {response['error']}")
        yield from _from_commons(response, query.class_name)
        if not isinstance(response.get("continue"), dict):
            return
        continuation = response["continue"]


def _from_commons(response: Mapping[str, Any], class_name: str) -> Iterator[ImageUrl]:
    content = response.get("query")
    pages = content.get("pages") if isinstance(content, dict) else []
    pages = _dicts(pages.values() if isinstance(pages, dict) else pages)
    for page in sorted(pages, key=lambda page: _integer(page.get("index"))):
        for info in _dicts(page.get("imageinfo"))[:1]:
            image_url = _from_image_info(info, class_name)
            if image_url is not None:
                yield image_url


def _from_image_info(info: Mapping[str, Any], class_name: str) -> ImageUrl | None:
    entry = info.get("extmetadata")
    metadata = entry if isinstance(entry, dict) else {}
    licence = _metadata_text(metadata, "LicenseShortName") or _metadata_text(metadata, "UsageTerms")
    url, mime_type = _text(info.get("url")), _text(info.get("mime"))
    if not url or not licence or (mime_type and mime_type.removeprefix("image/") not in _FORMATS):
        return None
    return ImageUrl(
        url=url,
        class_name=class_name,
        source="commons",
        licence=licence,
        creator=_metadata_text(metadata, "Artist"),
        attribution=_metadata_text(metadata, "Attribution") or _metadata_text(metadata, "Credit"),
        landing_page=_text(info.get("descriptionurl")),
    )


def _metadata_text(metadata: Mapping[str, Any], name: str) -> str:
    """Returns a value of Commons' metadata without its HTML; "" if there is none."""
    entry = metadata.get(name)
    markup = _text(entry.get("value")) if isinstance(entry, dict) else ""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _integer(value: object) -> int:
    return value if isinstance(value, int) else 0


def _dicts(values: object) -> list[dict[str, Any]]:
    """Returns the dictionaries of what should be a list of them; ignores anything else."""
    items = values if isinstance(values, Iterable) and not isinstance(values, str) else []
    return [item for item in items if isinstance(item, dict)]


PROVIDERS: Mapping[str, Provider] = {"openverse": search_openverse, "commons": search_commons}
