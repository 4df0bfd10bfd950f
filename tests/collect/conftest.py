"""Fixtures: a website, and the search APIs on it."""

import json
import threading
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest

from drone.collect.settings import SearchSettings
from tests.collect.website import Exchange, Website


@pytest.fixture
def site() -> Iterator[Website]:
    site = Website()
    thread = threading.Thread(target=site.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield site
    site.server.shutdown()
    site.server.server_close()


def openverse_page(site: Website, exchange: Exchange) -> None:
    query = parse_qs(urlsplit(exchange.path).query)
    page, terms = int(query["page"][0]), query["q"][0]
    assert query["page_size"] == ["20"]
    if page == 3:
        exchange.respond(b"{}", 401)
        return
    results = [
        {
            "url": site.url(f"/ov/{terms}/{page}/{number}.jpg"),
            "license": "by-sa",
            "license_version": "2.0",
            "source": "flickr",
            "creator": "Ann",
            "attribution": "Bird by Ann",
            "foreign_landing_url": "https://flickr.test/1",
        }
        for number in range(3)
    ]
    results += [{"url": "http://a/none.jpg", "license": None}, {"url": "x", "filetype": "svg"}]
    exchange.respond(json.dumps({"results": results, "page_count": 9}).encode())


def commons_page(site: Website, exchange: Exchange) -> None:
    query = parse_qs(urlsplit(exchange.path).query)
    assert query["generator"] == ["search"] and query["gsrnamespace"] == ["6"]
    offset = int(query.get("gsroffset", ["0"])[0])

    def page(number: int, mime: str = "image/jpeg") -> dict:
        metadata = {
            "LicenseShortName": {"value": "CC BY 4.0"},
            "Artist": {"value": '<a href="//x">Bob &amp; Co</a>'},
        }
        info = {
            "url": site.url(f"/wm/{number}.jpg"),
            "descriptionurl": "https://commons.test/f",
            "mime": mime,
            "extmetadata": metadata,
        }
        return {"index": -number, "imageinfo": [info]}

    pages = [page(offset), page(offset + 1), page(7, "application/pdf"), {"index": 1}]
    response: dict = {"query": {"pages": pages}}
    if offset < 4:
        response["continue"] = {"gsroffset": offset + 2, "continue": "gsroffset||"}
    exchange.respond(json.dumps(response).encode())


@pytest.fixture
def searches(site: Website) -> SearchSettings:
    site.routes["/openverse/"] = lambda exchange: openverse_page(site, exchange)
    site.routes["/commons"] = lambda exchange: commons_page(site, exchange)
    return SearchSettings(
        per_class=10, openverse_url=site.url("/openverse/"), commons_url=site.url("/commons")
    )
