"""The job as a user runs it."""

import time
from pathlib import Path

import pytest

from drone.collect import provenance
from drone.collect.settings import SearchSettings
from drone.collect.urls import host_of
from drone.data.prepare.listing import list_raw_files
from drone.data.prepare.scan import scan_file
from drone.errors import ConfigError
from drone.labels import CLASSES
from drone.serving.preprocess import Preprocessing
from tests.collect.website import Website, image_bytes, image_url, redirects, responds, write_table
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
