"""Finished rows are kept, and each item has one row, whatever ends a run."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from drone.errors import ConfigError
from drone.inference import parts as parts_module
from drone.inference.items import Item
from drone.inference.parts import Parts
from drone.inference.rows import Row
from drone.labels import CLASSES


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    monkeypatch.setattr(parts_module, "_MAX_ROWS", 4)
    opened = Parts(tmp_path / "parts", CLASSES)
    opened.open({"model": "m"})
    return opened


def row(number: int) -> Row:
    return Row(item=Item(root="/r", name=f"{number}.jpg"), reason="empty", detail="é" * number)


def paths(parts: Parts, keys: set[str]) -> list[str]:
    return [path for part in parts.read(keys) for path in part.table["path"].to_pylist()]


def test_what_came_before_an_interruption_is_kept(parts: Parts) -> None:
    def rows() -> Iterator[Row]:
        yield from map(row, range(6))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(parts.write(rows()))
    assert parts.keys() == {row(number).item.key for number in range(6)}
    assert sum(parts.write(map(row, range(6, 11)))) == 5
    keys = {row(number).item.key for number in range(11)}
    assert paths(parts, keys) == [f"/r/{number}.jpg" for number in range(11)]


def test_all_rows_of_a_file_are_kept_or_none(parts: Parts) -> None:
    def frames(number: int, count: int) -> list[Row]:
        return [replace(row(number), frame=at, is_last=at == count - 1) for at in range(count)]

    def rows() -> Iterator[Row]:
        yield from frames(0, 9)
        yield from frames(1, 3)
        yield from frames(2, 3)[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(parts.write(rows()))
    assert parts.keys() == {row(0).item.key, row(1).item.key}
    list(parts.write(frames(2, 3)))
    keys = {row(number).item.key for number in range(3)}
    assert paths(parts, keys) == ["/r/0.jpg"] * 9 + ["/r/1.jpg"] * 3 + ["/r/2.jpg"] * 3


def test_only_the_rows_that_are_wanted_are_read_each_once(parts: Parts) -> None:
    list(parts.write(map(row, range(5))))
    list(parts.write(map(row, range(3, 7))))
    keys = {row(number).item.key for number in (1, 3, 4, 6)}
    assert paths(parts, keys) == [f"/r/{number}.jpg" for number in (1, 3, 4, 6)]


def test_cards_are_found_by_their_place(parts: Parts) -> None:
    list(parts.write(map(row, range(5))))
    for part in parts.read(parts.keys()):
        content = part.cards.read_bytes()
        for entry in part.table.to_pylist():
            start, length = entry["card_start"], entry["card_bytes"]
            card = json.loads(content[start : start + length])
            assert (card["path"], card["detail"]) == (entry["path"], entry["detail"])


def test_cards_without_their_table_do_not_count(parts: Parts) -> None:
    list(parts.write(map(row, range(3))))
    # As a kill between the two files leaves them.
    (parts.folder / "00001.cards").write_bytes(b"cut short")
    (parts.folder / ".00001.parquet.new").write_bytes(b"cut short")
    list(parts.write([row(3)]))
    assert paths(parts, parts.keys()) == [f"/r/{number}.jpg" for number in range(4)]


def test_other_settings_are_refused(parts: Parts, tmp_path: Path) -> None:
    Parts(parts.folder, CLASSES).open({"model": "m"})
    with pytest.raises(ConfigError, match="with another model. Choose another --out, or start"):
        parts.open({"model": "n"})
    (parts.folder / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"run.json is damaged.*rm -r"):
        parts.open({"model": "m"})
    (parts.folder / "run.json").unlink()
    list(parts.write([row(0)]))
    with pytest.raises(ConfigError, match="files of unknown origin"):
        parts.open({"model": "m"})


def test_a_damaged_part_is_named(parts: Parts) -> None:
    list(parts.write([row(0)]))
    (parts.folder / "00000.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(ConfigError, match=r"00000.parquet is damaged. Remove it"):
        parts.keys()
