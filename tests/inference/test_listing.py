"""What the names of images lead to."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from drone.errors import DataError
from drone.inference.boxes import Box
from drone.inference.items import Item
from drone.inference.listing import list_items
from drone.storage import raw_roots
from tests.inference.conftest import write_image


def names(items: list[Item]) -> list[str]:
    return [item.name for item in items]


def test_a_folder_has_all_its_files_but_hidden_ones(mess: Path) -> None:
    items = list_items([str(mess)])
    assert names(items) == sorted(names(items))
    assert set(names(items)) == {
        *("a.jpg", "b/a.jpg", "b/two words.png", "Möwe/größe.jpg", "caf\\xe9.png", "cut.jpg"),
        *("empty.jpg", "note.jpg", "huge.png", "tiny.png", "gone.jpg"),
    }
    assert all(item.path == f"{mess}/{item.name}" for item in items)
    readable = [item for item in items if item.name != "gone.jpg"]
    assert all(item.local_file and item.local_file.is_file() for item in readable)


def test_archives_files_and_globs(mess: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = mess.parent / "more.zip"
    zipped = list_items([str(archive)])
    assert names(zipped) == ["in/a.jpg", "in/a.jpg#2", "in/two words.png"]
    assert zipped[0].path == f"{archive}/in/a.jpg" and zipped[0].local_file is None
    monkeypatch.chdir(mess)
    items = list_items(["a.jpg", "b/*", "**/*.png"])
    assert names(items)[0] == "a.jpg" and items[0].path == f"{mess}/a.jpg"
    # Each file once, although "two words.png" matches both globs.
    assert [item.path.rpartition("/")[2] for item in items[:3]] == [
        *("a.jpg", "a.jpg", "two words.png")
    ]
    assert len(items) == len({item.path for item in items}) == 6


def test_a_name_with_brackets_is_no_glob(tmp_path: Path) -> None:
    file = write_image(tmp_path / "[1] of *.png")
    assert [item.local_file for item in list_items([str(file)])] == [file]


def test_a_uri_of_a_folder_and_of_a_file(mess: Path) -> None:
    listed = list_items([f"file://{mess}/b"], raw_roots.open_root, raw_roots.is_file)
    assert names(listed) == ["a.jpg", "two words.png"]
    one = list_items([f"file://{mess}/b/a.jpg"], raw_roots.open_root, raw_roots.is_file)
    assert [item.path for item in one] == [f"file://{mess}/b/a.jpg"]
    assert (
        raw_roots.open_root(one[0].root).read(one[0].name, 10**6)
        == (mess / "b" / "a.jpg").read_bytes()
    )


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist. Name folders, zip archives"):
        list_items([str(tmp_path / "absent")])
    with pytest.raises(DataError, match=r"\*.jpg does not exist"):
        list_items([str(tmp_path / "*.jpg")])
    with pytest.raises(DataError, match="holds no files"):
        list_items([str(tmp_path)])


def test_the_key_changes_with_the_content_and_the_part_of_the_file(tmp_path: Path) -> None:
    file = write_image(tmp_path / "a.png")
    before = list_items([str(tmp_path)])[0]
    assert before.key == list_items([str(file)])[0].key
    os.utime(file, (1, 1))
    assert list_items([str(tmp_path)])[0].key != before.key
    box = Box(path="n", x=0, y=0, w=9, h=9, origin="boxes.csv, line 2")
    parts = [{}, {"frame": 0}, {"boxes": (box,)}, {"boxes": (replace(box, track="1"),)}]
    assert len({Item(root="r", name="n", **part).key for part in parts}) == 4
