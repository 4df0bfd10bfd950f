"""The raw set: its pictures and their provenance, runs that are killed, and tables of urls."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from drone.data.collect import provenance
from drone.data.collect.raw_set import collect, download_here, plan, read_table, tally
from drone.errors import DataError
from drone.labels import CLASSES
from tests.conftest import ROOT
from tests.data.collect.website import (
    QUICK,
    Asked,
    Web,
    collected,
    gives,
    got,
    picture,
    redirects,
    wanted,
    write_table,
)


def test_a_picture_and_all_that_is_known_of_it(web: Web, tmp_path: Path) -> None:
    data = picture(kind="PNG")
    web.routes["/a b/ü.jpg"] = web.routes["/a%20b/%C3%BC.jpg"] = gives(data)
    web.routes["/short"] = redirects("/a%20b/%C3%BC.jpg")
    (record,) = collected([wanted(web.url("/short#part"))], tmp_path / "raw")
    assert (record.status, record.reason, record.format) == ("kept", "", "PNG")
    assert record.final_url == web.url("/a%20b/%C3%BC.jpg")
    assert record.path == f"Flying Birds/{record.md5[:16]}.png"
    assert (tmp_path / "raw" / record.path).read_bytes() == data
    assert (record.size_bytes, record.content_type) == (len(data), "image/jpeg")
    assert (record.source, record.licence) == ("test", "CC0")
    assert record.when.endswith("+00:00")
    assert web.agents[0].startswith("drone-collect/")
    assert got(web.url("/a b/ü.jpg"), contact="me@example.org").reason == ""
    assert "me@example.org" in web.agents[-1]


def test_equal_pictures_of_a_class_are_one_file(web: Web, tmp_path: Path) -> None:
    web.routes["/a"] = web.routes["/b"] = gives(picture())
    urls = [wanted(web.url(path)) for path in ("/a", "/b", "/a")]
    records = collected([*urls, wanted(web.url("/a"), CLASSES[1])], tmp_path)
    assert len(records) == 3
    assert sorted(path.suffix for path in tmp_path.rglob("*.jpg")) == [".jpg", ".jpg"]
    counts = tally(urls[:2], provenance.standing(tmp_path))
    assert (counts[CLASSES[0]].kept, counts[CLASSES[0]].pictures) == (2, 1)


SLOW = """
import sys
from pathlib import Path
from drone.data.collect.raw_set import collect, download_here, plan, read_table
from drone.data.collect.settings import FetchSettings
settings = FetchSettings(allow_private=True, per_host_per_s=1000)
for record in collect(read_table(Path(sys.argv[1])), Path(sys.argv[2]), settings, download_here):
    print(record.url, flush=True)
"""


def test_a_killed_run_goes_on(web: Web, tmp_path: Path) -> None:
    stuck, out = threading.Event(), tmp_path / "raw"

    def stalls(asked: Asked) -> None:
        asked.answer(picture(9)[:1000], Content_Length=str(len(picture(9))))
        stuck.wait(60)

    for number in range(3):
        web.routes[f"/{number}"] = gives(picture(number))
    web.routes["/9"] = stalls
    urls = [wanted(web.url(f"/{number}")) for number in (0, 1, 9, 2)]
    table = write_table(tmp_path / "urls.csv", urls)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(table), str(out)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout
    assert [process.stdout.readline().strip().decode() for _ in range(2)] == [
        urls[0].url,
        urls[1].url,
    ]
    with pytest.raises(DataError, match="Another run collects"):
        collected(urls, out)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    stuck.set()
    assert len(list(out.rglob("*.jpg"))) == 2
    # As if it had been killed within a write, too.
    with (out / provenance.NAME).open("ab") as stream:
        stream.write(b'{"url": "http://exam')
    web.routes["/9"] = gives(picture(9))
    web.paths.clear()
    assert {record.url for record in collected(urls, out)} == {urls[2].url, urls[3].url}
    assert sorted(web.paths) == ["/2", "/9"]
    lines = (out / provenance.NAME).read_text().splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["kept"] * 4
    assert collected(urls, out) == []
    for file in out.rglob("*.jpg"):
        Image.open(file).load()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        collected([wanted("http://a.test/")], tmp_path / "file" / "raw")


def test_stopped_between_two_pictures(web: Web, tmp_path: Path) -> None:
    for number in range(2):
        web.routes[f"/{number}"] = gives(picture(number))
    urls = [wanted(web.url(f"/{number}")) for number in range(2)]

    def interrupted(todo, settings):  # type: ignore[no-untyped-def]
        yield next(iter(download_here(todo, settings)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(collect(urls, tmp_path, QUICK, interrupted))
    assert [record.status for record in provenance.standing(tmp_path).values()] == ["kept"]
    assert len(collected(urls, tmp_path)) == 1


def test_what_failed_is_tried_again_only_when_asked(web: Web, tmp_path: Path) -> None:
    urls = [wanted(web.url("/late"))]
    assert collected(urls, tmp_path)[0].reason == "http-404"
    web.routes["/late"] = gives(picture())
    assert collected(urls, tmp_path) == []
    again = plan(urls, provenance.standing(tmp_path), retry_failed=True)
    (record,) = collect(again.todo, tmp_path, QUICK, download_here)
    assert record.status == "kept"
    assert len((tmp_path / provenance.NAME).read_text().splitlines()) == 2
    counts = tally(urls, provenance.standing(tmp_path))[CLASSES[0]]
    assert (counts.wanted, counts.kept, counts.failed) == (1, 1, {})


def test_a_provenance_file_with_a_bad_line(tmp_path: Path) -> None:
    (tmp_path / provenance.NAME).write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"provenance.jsonl, line 1 is no record"):
        provenance.standing(tmp_path)


def test_a_last_line_without_its_end_is_whole(web: Web, tmp_path: Path) -> None:
    """An editor may have taken the line break away."""
    web.routes["/a"] = web.routes["/b"] = gives(picture())
    collected([wanted(web.url("/a"))], tmp_path)
    file = tmp_path / provenance.NAME
    file.write_bytes(file.read_bytes().rstrip())
    collected([wanted(web.url("/b"))], tmp_path)
    assert len(provenance.standing(tmp_path)) == 2


def test_tables(tmp_path: Path) -> None:
    file = tmp_path / "urls.csv"
    file.write_text(
        "\ufeffURL,Class,source,license,Landing page\n"
        'http://a/1,flying_birds,"me, myself",CC0,http://a\n'
        "\n"
        "http://a/2,winged drone,me,,\n",
        "utf-8",
    )
    first, second = read_table(file)
    assert (first.class_name, first.source, first.licence) == ("Flying Birds", "me, myself", "CC0")
    assert (first.landing_page, second.class_name) == ("http://a", "Winged Drones")
    pd.read_csv(file, encoding="utf-8-sig").to_parquet(tmp_path / "urls.parquet")
    assert read_table(tmp_path / "urls.parquet") == [first, second]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("url,class,source\nu,c,s\n", "no column licence. It has: url, class, source"),
        ("", "no column url, class, source, licence. It has: none"),
        ("url,class,source,licence\n", "has no row"),
        ("url,class,source,licence\na,Flying Birds,s,l\n,Flying Birds,s,l\n", "line 3: the url is"),
        ("url,class,source,licence\na,Winged Dron,s,l\n", "line 2: 'Winged Dron' is no class. Did"),
        ("url,class,source,licence\na\n", "line 2: '' is no class. Classes: Flying Birds"),
    ],
)
def test_tables_that_are_no_use(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "urls.csv"
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        read_table(file)
    assert said in str(caught.value) and "urls.csv" in str(caught.value)


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content in (("no.csv", None), ("b.csv", b"\xff\xfe\x00"), ("c.parquet", b"text")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_table(tmp_path / name)
