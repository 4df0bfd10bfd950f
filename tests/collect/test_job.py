"""The job as a user runs it."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from drone.collect import provenance
from drone.collect.folders import folder_of
from drone.collect.raw_folder import collect, download_sequentially
from drone.collect.search import parse_queries
from drone.collect.settings import SearchSettings
from drone.collect.urls import host_of
from drone.data.prepare.listing import list_raw_files
from drone.data.prepare.negatives import list_negatives
from drone.data.prepare.scan import scan_file
from drone.errors import ConfigError, DataError
from drone.labels import CLASSES
from drone.serving.preprocess import Preprocessing
from drone.workflows import collection
from drone.workflows.requests import CollectRequest
from tests.collect.website import (
    QUICK,
    Website,
    collect_all,
    image_bytes,
    image_url,
    redirects,
    responds,
    write_table,
)
from tests.conftest import RunJob


def test_usage_errors(call_job: RunJob, tmp_path: Path) -> None:
    def fails(code: int, message: str, *args: object) -> None:
        done = call_job("collect", "--out", "raw", *args)
        assert done.code == code, done.err
        assert message in " ".join((done.err + done.out).split()), done.err
        assert "Traceback" not in done.err

    fails(2, "--table FILE, or --search")
    fails(2, "--query needs --search", "--table", "t.csv", "--query", "a=b")
    fails(2, "CLASS=TERMS", "--search", "commons", "--query", "birds")
    fails(2, "Did you mean 'Flying Birds'?", "--search", "commons", "--query", "Flying Bats=bat")
    fails(2, "--requests-per-s is 0.0", "--table", "t.csv", "--requests-per-s", 0)
    fails(2, "--contact is", "--table", "t.csv", "--contact", "a\nb: c")
    negatives = ("--negatives", "--search", "commons", "--query")
    fails(2, "'flying_birds' is a class and no kind", *negatives, "flying_birds=gull")
    fails(2, "must not contain '/'", *negatives, "a/b=plane")
    fails(1, "t.csv cannot be read", "--table", "t.csv")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "mine.txt").touch()
    fails(1, "was not collected by this job", "--table", "t.csv")
    with pytest.raises(ConfigError):
        SearchSettings(per_class=0)


def test_a_dry_run_shows_hosts_and_writes_nothing(call_job: RunJob, tmp_path: Path) -> None:
    urls = [image_url(f"http://{host}/{n}") for host in ("a.test", "b.test") for n in range(2)]
    table = write_table(tmp_path / "urls.csv", [*urls, image_url("http://A.test./x", CLASSES[3])])
    done = call_job("collect", "--out", "raw", "--table", table, "--dry-run", "--json")
    assert done.code == 0, done.err
    assert done.result["hosts"] == {
        "a.test": {"Flying Birds": 2, "Winged Drones": 1},
        "b.test": {"Flying Birds": 2},
    }
    assert done.result["classes"]["Flying Birds"]["pending"] == 4
    assert "a.test" in done.err
    assert not (tmp_path / "raw").exists()
    assert host_of("http://BÜCHER.example/a") == "xn--bcher-kva.example"


def test_negatives_go_into_a_folder_of_kinds(
    site: Website, searches: SearchSettings, tmp_path: Path
) -> None:
    for number in range(6):
        site.routes[f"/wm/{number}.jpg"] = responds(image_bytes(number))
    site.routes["/kite"] = responds(image_bytes(9))
    table = write_table(tmp_path / "urls.csv", [image_url(site.url("/kite"), "kite")])
    request = CollectRequest(
        out=tmp_path / "negatives",
        negatives=True,
        table=(table,),
        search=("commons",),
        query=("airplane=airliner", "airplane=glider"),
    )
    settings = collection.CollectSettings(search=searches, fetch=QUICK)
    planned = collection.plan(request, settings)
    assert planned.hosts == {"127.0.0.1": {"airplane": 6, "kite": 1}}
    list(collect(planned.pending, request.out, QUICK, download_sequentially))
    counts = collection.results(planned, request)
    assert {name: each.images for name, each in counts.items()} == {"kite": 1, "airplane": 6}
    files = list_negatives([request.out], CLASSES).files
    assert sorted(file.kind for file in files) == ["airplane"] * 6 + ["kite"]
    with pytest.raises(DataError, match="holds negatives, and this run is without --negatives"):
        collection.plan(replace(request, negatives=False, query=()), settings)


def test_classes_and_negatives_have_folders_of_their_own(site: Website, tmp_path: Path) -> None:
    site.routes["/bird"] = responds(image_bytes())
    collect_all([image_url(site.url("/bird"))], tmp_path / "raw")
    table = write_table(tmp_path / "urls.csv", [image_url(site.url("/kite"), "kite")])
    request = CollectRequest(out=tmp_path / "raw", negatives=True, table=(table,))
    with pytest.raises(DataError, match="raw holds images of classes, and this run is with"):
        collection.plan(request)


def test_every_kind_has_queries_and_is_no_class() -> None:
    queries = parse_queries([], negatives=True)
    kinds = {query.class_name for query in queries}
    assert {"airplane", "helicopter", "balloon", "kite", "sky", "wire", "insect"} <= kinds
    assert all(folder_of(kind, negatives=True) == kind for kind in kinds)
    assert len({query.terms for query in queries}) == len(queries)


@pytest.mark.ray
def test_the_job(run_job: RunJob, site: Website, searches: SearchSettings, tmp_path: Path) -> None:
    """A table and a search, on two hosts; `prepare` can read the raw folder."""
    for number in range(4):
        site.routes[f"/{number}"] = responds(image_bytes(number))
    site.routes["/html"] = responds(b"<html>")
    site.routes["/here"] = redirects(site.url("/0"))
    for number in range(6):
        site.routes[f"/wm/{number}.jpg"] = responds(image_bytes(20 + number))
    urls = [image_url(site.url(f"/{name}"), CLASSES[1]) for name in (0, 1, "html", "none")]
    urls += [image_url(site.url(f"/{name}", "localhost"), CLASSES[2]) for name in (2, 3, "here")]
    table = write_table(tmp_path / "urls.csv", urls)
    args = ["--out", "raw", "--table", table, "--json", "--allow-private", "--requests-per-s", 20]
    args += ["--search", "commons", "--commons-url", searches.commons_url, "--per-class", 6]
    args += ["--query", "Flying Birds=gull", "Winged Drones=glider"]
    started = time.monotonic()
    done = run_job("collect", *args)
    assert done.code == 0, done.err
    classes = done.result["classes"]
    assert classes[CLASSES[1]] == {
        "urls": 4,
        "kept": 2,
        "images": 2,
        "failed": {"non-media": 1, "http-404": 1},
        "pending": 0,
    }
    assert [classes[name]["kept"] for name in CLASSES] == [6, 2, 3, 6]
    # Both workers sent requests to 127.0.0.1, one of them through a redirect.
    requests = zip(site.times, site.paths, strict=True)
    times = [time_s for time_s, path in requests if path[1:] not in "23"]
    assert times[-1] - started >= (len(times) - 3) / 20
    listing = list_raw_files([tmp_path / "raw"])
    assert len(listing.files) == 17 and not listing.left_out
    assert not any(scan_file(file, Preprocessing()).problem for file in listing.files)
    records = provenance.latest_records(tmp_path / "raw")
    assert len(records) == 19
    assert {record.licence for record in records.values()} == {"CC0", "CC BY 4.0"}
