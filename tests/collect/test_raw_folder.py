"""The raw folder: images and their records, and runs that are killed or interrupted."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from drone.collect import provenance
from drone.collect.raw_folder import collect, count_by_class, download_sequentially, plan_collection
from drone.errors import DataError, LockedError
from drone.labels import CLASSES, ClassSet
from tests.collect.website import (
    QUICK,
    Exchange,
    Website,
    collect_all,
    download_one,
    image_bytes,
    image_url,
    redirects,
    responds,
    write_table,
)
from tests.conftest import ROOT


def test_an_image_and_its_record(site: Website, tmp_path: Path) -> None:
    data = image_bytes(kind="PNG")
    site.routes["/a b/ü.jpg"] = site.routes["/a%20b/%C3%BC.jpg"] = responds(data)
    site.routes["/short"] = redirects("/a%20b/%C3%BC.jpg")
    (record,) = collect_all([image_url(site.url("/short#part"))], tmp_path / "raw")
    assert (record.status, record.reason, record.format) == ("kept", "", "PNG")
    assert record.final_url == site.url("/a%20b/%C3%BC.jpg")
    assert record.path == f"Flying Birds/{record.md5[:16]}.png"
    assert (tmp_path / "raw" / record.path).read_bytes() == data
    assert (record.size_bytes, record.content_type) == (len(data), "image/jpeg")
    assert (record.source, record.licence) == ("test", "CC0")
    assert record.when.endswith("+00:00")
    assert site.agents[0].startswith("drone-collect/")
    assert download_one(site.url("/a b/ü.jpg"), contact="me@example.org").reason == ""
    assert "me@example.org" in site.agents[-1]


def test_equal_images_of_a_class_are_one_file(site: Website, tmp_path: Path) -> None:
    site.routes["/a"] = site.routes["/b"] = responds(image_bytes())
    urls = [image_url(site.url(path)) for path in ("/a", "/b", "/a")]
    records = collect_all([*urls, image_url(site.url("/a"), CLASSES[1])], tmp_path)
    assert len(records) == 3
    assert sorted(path.suffix for path in tmp_path.rglob("*.jpg")) == [".jpg", ".jpg"]
    counts = count_by_class(urls[:2], provenance.latest_records(tmp_path))
    assert (counts[CLASSES[0]].kept, counts[CLASSES[0]].images) == (2, 1)


def test_a_class_with_a_slash_has_one_folder(site: Website, tmp_path: Path) -> None:
    site.routes["/a"] = responds(image_bytes())
    (record,) = collect_all([image_url(site.url("/a"), "Birds/Gulls")], tmp_path)
    assert record.class_name == "Birds/Gulls" and record.path.startswith("Birds Gulls/")
    assert ClassSet.of(("Birds/Gulls", "Drones")).match("Birds Gulls") == "Birds/Gulls"


SCRIPT = """
import sys
from pathlib import Path
from drone.collect.raw_folder import collect, download_sequentially
from drone.collect.settings import FetchSettings
from drone.collect.url_table import read_table
settings = FetchSettings(allow_private=True, requests_per_s=1000)
image_urls, folder = read_table(Path(sys.argv[1])), Path(sys.argv[2])
for record in collect(image_urls, folder, settings, download_sequentially):
    print(record.url, flush=True)
"""


def test_a_killed_run_resumes(site: Website, tmp_path: Path) -> None:
    finished, out = threading.Event(), tmp_path / "raw"

    def stalls(exchange: Exchange) -> None:
        exchange.respond(image_bytes(9)[:1000], Content_Length=str(len(image_bytes(9))))
        finished.wait(60)

    for number in range(3):
        site.routes[f"/{number}"] = responds(image_bytes(number))
    site.routes["/9"] = stalls
    urls = [image_url(site.url(f"/{number}")) for number in (0, 1, 9, 2)]
    table = write_table(tmp_path / "urls.csv", urls)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(table), str(out)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout
    assert [process.stdout.readline().strip().decode() for _ in range(2)] == [
        urls[0].url,
        urls[1].url,
    ]
    with pytest.raises(LockedError, match="The raw folder .* is being written by"):
        collect_all(urls, out)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    finished.set()
    assert len(list(out.rglob("*.jpg"))) == 2
    # A run may also be killed while it writes a record.
    with (out / provenance.FILE_NAME).open("ab") as stream:
        stream.write(b'{"url": "http://exam')
    site.routes["/9"] = responds(image_bytes(9))
    site.paths.clear()
    assert {record.url for record in collect_all(urls, out)} == {urls[2].url, urls[3].url}
    assert sorted(site.paths) == ["/2", "/9"]
    lines = (out / provenance.FILE_NAME).read_text().splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["kept"] * 4
    assert collect_all(urls, out) == []
    for file in out.rglob("*.jpg"):
        Image.open(file).load()


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        collect_all([image_url("http://a.test/")], tmp_path / "file" / "raw")


def test_an_interrupted_run_keeps_what_it_collected(site: Website, tmp_path: Path) -> None:
    for number in range(2):
        site.routes[f"/{number}"] = responds(image_bytes(number))
    urls = [image_url(site.url(f"/{number}")) for number in range(2)]

    def interrupted(image_urls, settings):  # type: ignore[no-untyped-def]
        yield next(iter(download_sequentially(image_urls, settings)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(collect(urls, tmp_path, QUICK, interrupted))
    assert [record.status for record in provenance.latest_records(tmp_path).values()] == ["kept"]
    assert len(collect_all(urls, tmp_path)) == 1


def test_failed_urls_are_retried_only_with_retry_failed(site: Website, tmp_path: Path) -> None:
    urls = [image_url(site.url("/late"))]
    assert collect_all(urls, tmp_path)[0].reason == "http-404"
    site.routes["/late"] = responds(image_bytes())
    assert collect_all(urls, tmp_path) == []
    plan = plan_collection(urls, provenance.latest_records(tmp_path), retry_failed=True)
    (record,) = collect(plan.pending, tmp_path, QUICK, download_sequentially)
    assert record.status == "kept"
    assert len((tmp_path / provenance.FILE_NAME).read_text().splitlines()) == 2
    counts = count_by_class(urls, provenance.latest_records(tmp_path))[CLASSES[0]]
    assert (counts.urls, counts.kept, counts.failed) == (1, 1, {})


def test_an_invalid_line(tmp_path: Path) -> None:
    (tmp_path / provenance.FILE_NAME).write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"provenance.jsonl, line 1 is not a provenance record"):
        provenance.latest_records(tmp_path)


def test_a_last_line_without_a_line_break(site: Website, tmp_path: Path) -> None:
    """An editor may have removed the line break."""
    site.routes["/a"] = site.routes["/b"] = responds(image_bytes())
    collect_all([image_url(site.url("/a"))], tmp_path)
    file = tmp_path / provenance.FILE_NAME
    file.write_bytes(file.read_bytes().rstrip())
    collect_all([image_url(site.url("/b"))], tmp_path)
    assert len(provenance.latest_records(tmp_path)) == 2
