"""The web, and the searches on it."""

import json
import threading
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest

from drone.data.collect.search import SearchSettings
from tests.data.collect.website import (
    Asked,
    Web,
)


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    thread = threading.Thread(target=web.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield web
    web.server.shutdown()
    web.server.server_close()


def openverse_page(web: Web, asked: Asked) -> None:
    query = parse_qs(urlsplit(asked.path).query)
    page, words = int(query["page"][0]), query["q"][0]
    assert query["page_size"] == ["20"]
    if page == 3:
        asked.answer(b"{}", 401)
        return
    results = [
        {
            "url": web.url(f"/ov/{words}/{page}/{number}.jpg"),
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
    asked.answer(json.dumps({"results": results, "page_count": 9}).encode())


def commons_page(web: Web, asked: Asked) -> None:
    query = parse_qs(urlsplit(asked.path).query)
    assert query["generator"] == ["search"] and query["gsrnamespace"] == ["6"]
    offset = int(query.get("gsroffset", ["0"])[0])

    def page(number: int, mime: str = "image/jpeg") -> dict:
        about = {
            "LicenseShortName": {"value": "CC BY 4.0"},
            "Artist": {"value": '<a href="//x">Bob &amp; Co</a>'},
        }
        image = {
            "url": web.url(f"/wm/{number}.jpg"),
            "descriptionurl": "https://commons.test/f",
            "mime": mime,
            "extmetadata": about,
        }
        return {"index": -number, "imageinfo": [image]}

    pages = [page(offset), page(offset + 1), page(7, "application/pdf"), {"index": 1}]
    answer: dict = {"query": {"pages": pages}}
    if offset < 4:
        answer["continue"] = {"gsroffset": offset + 2, "continue": "gsroffset||"}
    asked.answer(json.dumps(answer).encode())


@pytest.fixture
def searches(web: Web) -> SearchSettings:
    web.routes["/openverse/"] = lambda asked: openverse_page(web, asked)
    web.routes["/commons"] = lambda asked: commons_page(web, asked)
    return SearchSettings(
        per_class=10, openverse_url=web.url("/openverse/"), commons_url=web.url("/commons")
    )
