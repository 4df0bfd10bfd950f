"""Searches for urls, and the job as a person types it."""

import time
from pathlib import Path

import pytest

from drone.data.collect import provenance
from drone.data.collect.connection import host_of
from drone.data.collect.download import RateLimiter
from drone.data.collect.search import SearchSettings, asking, parse_queries, search
from drone.data.collect.settings import FetchError
from drone.data.scan import list_sources, scan_file
from drone.errors import ConfigError, DataError
from drone.labels import CLASSES
from drone.serving.preprocess import Preprocessing
from tests.conftest import RunJob
from tests.data.collect.website import QUICK, Web, gives, picture, redirects, wanted, write_table


def test_searches_page_on_and_share(web: Web, searches: SearchSettings) -> None:
    ask = asking(QUICK, RateLimiter(1000))
    queries = parse_queries(["winged_drones=glider"])
    found = search(queries, ["openverse", "commons"], searches, ask)
    assert len(found.wanted) == 10 and found.notes == ()
    assert {one.class_name for one in found.wanted} == {"Winged Drones"}
    assert [one.source for one in found.wanted].count("commons") == 5
    ann = found.wanted[0]
    assert (ann.licence, ann.creator, ann.source) == ("CC BY-SA 2.0", "Ann", "openverse/flickr")
    assert (ann.attribution, ann.landing_page) == ("Bird by Ann", "https://flickr.test/1")
    bob = next(one for one in found.wanted if one.source == "commons")
    assert (bob.licence, bob.creator) == ("CC BY 4.0", "Bob & Co")
    # Openverse ends at the page that it refuses, Commons where it has no `continue`.
    more = SearchSettings(**{**vars(searches), "per_class": 50})
    found = search(queries, ["openverse", "commons"], more, ask)
    assert len(found.wanted) == 12
    assert found.notes == ("Winged Drones: 12 urls of 50 were found.",)


def test_a_search_that_is_down(web: Web, searches: SearchSettings) -> None:
    del web.routes["/commons"]
    ask = asking(QUICK, RateLimiter(1000))
    queries = parse_queries(["Flying Birds=gull"] * 3)
    found = search(queries, ["commons", "openverse"], searches, ask)
    assert {one.source for one in found.wanted} == {"openverse/flickr"}
    assert "commons failed and is left out" in found.notes[0]
    assert web.paths.count("/commons") == 1
    with pytest.raises(DataError, match="found no picture. commons failed.*404"):
        search(parse_queries([]), ["commons"], searches, ask)
    web.routes["/commons"] = gives(b"<html>")
    with pytest.raises(FetchError, match="no JSON object"):
        ask(searches.commons_url, {})


def test_wrong_words(call_job: RunJob, tmp_path: Path) -> None:
    def fails(code: int, said: str, *words: object) -> None:
        done = call_job("collect", "--out", "raw", *words)
        assert done.code == code, done.err
        assert said in " ".join((done.err + done.out).split()), done.err
        assert "Traceback" not in done.err

    fails(2, "--table FILE, or --search")
    fails(2, "--query needs --search", "--table", "t.csv", "--query", "a=b")
    fails(2, "CLASS=WORDS", "--search", "commons", "--query", "birds")
    fails(2, "Did you mean 'Flying Birds'?", "--search", "commons", "--query", "Flying Bats=bat")
    fails(2, "--per-host-per-s is 0.0", "--table", "t.csv", "--per-host-per-s", 0)
    fails(2, "--contact is", "--table", "t.csv", "--contact", "a\nb: c")
    fails(1, "t.csv cannot be read", "--table", "t.csv")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "mine.txt").touch()
    fails(1, "was not collected", "--table", "t.csv")
    with pytest.raises(ConfigError):
        SearchSettings(per_class=0)


def test_a_dry_run_shows_hosts_and_writes_nothing(call_job: RunJob, tmp_path: Path) -> None:
    urls = [wanted(f"http://{host}/{n}") for host in ("a.test", "b.test") for n in range(2)]
    table = write_table(tmp_path / "urls.csv", [*urls, wanted("http://A.test./x", CLASSES[3])])
    done = call_job("collect", "--out", "raw", "--table", table, "--dry-run", "--json")
    assert done.code == 0, done.err
    assert done.result["hosts"] == {
        "a.test": {"Flying Birds": 2, "Winged Drones": 1},
        "b.test": {"Flying Birds": 2},
    }
    assert done.result["classes"]["Flying Birds"]["open"] == 4
    assert "a.test" in done.err
    assert not (tmp_path / "raw").exists()
    assert host_of("http://BÜCHER.example/a") == "xn--bcher-kva.example"


@pytest.mark.ray
def test_the_job(run_job: RunJob, web: Web, searches: SearchSettings, tmp_path: Path) -> None:
    """A table and a search, two hosts; what it leaves is what `prepare` takes."""
    for number in range(4):
        web.routes[f"/{number}"] = gives(picture(number))
    web.routes["/html"] = gives(b"<html>")
    web.routes["/here"] = redirects(web.url("/0"))
    for number in range(6):
        web.routes[f"/wm/{number}.jpg"] = gives(picture(20 + number))
    urls = [wanted(web.url(f"/{name}"), CLASSES[1]) for name in (0, 1, "html", "none")]
    urls += [wanted(web.url(f"/{name}", "localhost"), CLASSES[2]) for name in (2, 3, "here")]
    table = write_table(tmp_path / "urls.csv", urls)
    words = ["--out", "raw", "--table", table, "--json", "--allow-private", "--per-host-per-s", 20]
    words += ["--search", "commons", "--commons-url", searches.commons_url, "--per-class", 6]
    words += ["--query", "Flying Birds=gull", "Winged Drones=glider"]
    started = time.monotonic()
    done = run_job("collect", *words)
    assert done.code == 0, done.err
    classes = done.result["classes"]
    assert classes[CLASSES[1]] == {
        "wanted": 4,
        "kept": 2,
        "pictures": 2,
        "failed": {"non-media": 1, "http-404": 1},
        "open": 0,
    }
    assert [classes[name]["kept"] for name in CLASSES] == [6, 2, 3, 6]
    # Both workers came to 127.0.0.1, one of them through a redirect.
    of_127 = [when for when, path in zip(web.times, web.paths, strict=True) if path[1:] not in "23"]
    assert of_127[-1] - started >= (len(of_127) - 3) / 20
    listing = list_sources([tmp_path / "raw"])
    assert len(listing.sources) == 17 and listing.unknown_folders == ()
    assert not any(scan_file(one, Preprocessing()).problem for one in listing.sources)
    records = provenance.standing(tmp_path / "raw")
    assert len(records) == 19
    assert {record.licence for record in records.values()} == {"CC0", "CC BY 4.0"}
