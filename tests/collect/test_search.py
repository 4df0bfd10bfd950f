"""Searches for image URLs."""

import pytest

from drone.collect.errors import FetchError
from drone.collect.rate_limiter import RateLimiter
from drone.collect.search import json_fetcher, parse_queries, search_images
from drone.collect.settings import SearchSettings
from drone.errors import DataError
from tests.collect.website import QUICK, Website, responds


def test_urls_come_from_all_pages_and_providers_in_turn(
    site: Website, searches: SearchSettings
) -> None:
    fetch_json = json_fetcher(QUICK, RateLimiter(1000))
    queries = parse_queries(["winged_drones=glider"])
    result = search_images(queries, ["openverse", "commons"], searches, fetch_json)
    assert len(result.image_urls) == 10 and result.warnings == ()
    assert {image_url.class_name for image_url in result.image_urls} == {"Winged Drones"}
    assert [image_url.source for image_url in result.image_urls].count("commons") == 5
    ann = result.image_urls[0]
    assert (ann.licence, ann.creator, ann.source) == ("CC BY-SA 2.0", "Ann", "openverse/flickr")
    assert (ann.attribution, ann.landing_page) == ("Bird by Ann", "https://flickr.test/1")
    bob = next(row for row in result.image_urls if row.source == "commons")
    assert (bob.licence, bob.creator) == ("CC BY 4.0", "Bob & Co")
    # Openverse ends at the page that it refuses, Commons at the one without `continue`.
    more = SearchSettings(**{**vars(searches), "per_class": 50})
    result = search_images(queries, ["openverse", "commons"], more, fetch_json)
    assert len(result.image_urls) == 12
    assert result.warnings == ("Winged Drones: found 12 of 50 URLs.",)


def test_a_provider_that_fails_is_skipped(site: Website, searches: SearchSettings) -> None:
    del site.routes["/commons"]
    fetch_json = json_fetcher(QUICK, RateLimiter(1000))
    queries = parse_queries(["Flying Birds=gull"] * 3)
    result = search_images(queries, ["commons", "openverse"], searches, fetch_json)
    assert {image_url.source for image_url in result.image_urls} == {"openverse/flickr"}
    assert "commons failed and is skipped" in result.warnings[0]
    assert site.paths.count("/commons") == 1
    with pytest.raises(DataError, match="found no images. commons failed.*404"):
        search_images(parse_queries([]), ["commons"], searches, fetch_json)
    site.routes["/commons"] = responds(b"<html>")
    with pytest.raises(FetchError, match="not a JSON object"):
        fetch_json(searches.commons_url, {})
