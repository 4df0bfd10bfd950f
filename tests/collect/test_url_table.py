"""Tables of image URLs."""

from pathlib import Path

import pandas as pd
import pytest

from drone.collect.url_table import read_table
from drone.errors import DataError


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
    ("text", "message"),
    [
        ("url,class,source\nu,c,s\n", "no column licence. It has: url, class, source"),
        ("", "no column url, class, source, licence. It has: none"),
        ("url,class,source,licence\n", "has no rows"),
        ("url,class,source,licence\na,Flying Birds,s,l\n,Flying Birds,s,l\n", "line 3: the url is"),
        (
            "url,class,source,licence\na,Winged Dron,s,l\n",
            "line 2: 'Winged Dron' is not a class. Did",
        ),
        ("url,class,source,licence\na\n", "line 2: '' is not a class. Classes: Flying Birds"),
    ],
)
def test_invalid_tables(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "urls.csv"
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        read_table(file)
    assert message in str(caught.value) and "urls.csv" in str(caught.value)


def test_unreadable_tables(tmp_path: Path) -> None:
    for name, content in (("no.csv", None), ("b.csv", b"\xff\xfe\x00"), ("c.parquet", b"text")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_table(tmp_path / name)
