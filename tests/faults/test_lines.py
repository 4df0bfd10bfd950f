"""Files of lines: hostile names, lines cut short, and disks that fill up."""

from pathlib import Path

import pytest

from drone.collect import provenance
from drone.data.prepare import ledger
from drone.errors import DamagedError
from tests.collect.website import image_url
from tests.faults.disks import fill, small_disk
from tests.faults.updated import drop

LINE_BREAKS = ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\r", "\n", "\ud800"]
"""What str.splitlines splits at, and half of a surrogate pair."""


def decision(number: int, name: str = "someone") -> ledger.Decision:
    """A decision on one of many images."""
    return drop(f"{number:032x}", name)


@pytest.mark.parametrize("character", LINE_BREAKS)
def test_names_may_hold_any_character(tmp_path: Path, character: str) -> None:
    file = tmp_path / ledger.LEDGER_FILE
    decisions = [decision(number, f"a{character}b") for number in range(3)]
    ledger.append(file, decisions[:1])
    ledger.append(file, decisions[1:])
    assert ledger.repair(file) == [] and ledger.read(file) == decisions
    assert ledger.read_by_hand(file, ["a", "b"]) == decisions


def test_a_ledger_that_was_cut_short_loses_its_last_line_at_most(tmp_path: Path) -> None:
    file = tmp_path / ledger.LEDGER_FILE
    decisions = [decision(number) for number in range(3)]
    ledger.append(file, decisions)
    content = file.read_bytes()
    second_line_ends = len(b"\n".join(content.split(b"\n")[:2]))
    for length in range(second_line_ends + 2, len(content)):
        file.write_bytes(content[:length])
        said = ledger.repair(file)
        is_whole = length == len(content) - 1  # Only the line break is missing.
        assert ledger.read(file) == (decisions if is_whole else decisions[:2])
        assert is_whole or "its last line was cut short, and has been removed" in said[0]
        ledger.append(file, decisions[2:])
        assert ledger.read(file)[2:] == [decisions[2]] * (2 if is_whole else 1)


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"md5": 1}', "null", "[" * 100_000])
def test_another_bad_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / ledger.LEDGER_FILE
    ledger.append(file, [decision(number) for number in range(2)])
    lines = file.read_text().split("\n")
    file.write_text("\n".join([lines[0], line, *lines[1:]]))
    with pytest.raises(DamagedError, match=r"ledger.jsonl is damaged: line 2 is no decision"):
        ledger.read(file)


def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        file = disk / ledger.LEDGER_FILE
        ledger.append(file, [decision(0)])
        filling = fill(disk)
        with pytest.raises(OSError, match="No space left"):
            ledger.append(file, [decision(number) for number in range(1, 20)])
        assert ledger.read(file) == [decision(0)] and ledger.repair(file) == []
        filling.unlink()
        ledger.append(file, [decision(1)])
        assert ledger.read(file) == [decision(0), decision(1)]


def record(number: int) -> provenance.Record:
    """The record of a download that failed."""
    return provenance.Record(
        **vars(image_url(f"http://example.org/{number}")),
        status=provenance.FAILED,
        reason="gone",
        detail="x" * 3000,
        final_url="",
        path="",
        md5="",
        size_bytes=0,
        content_type="",
        format="",
        when="",
    )


def test_a_full_disk_leaves_the_provenance_file_as_it_was(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        with provenance.open_locked(disk / "raw") as stream:
            provenance.append(stream, record(0))
            fill(disk)
            written = 1
            with pytest.raises(OSError, match="No space left"):
                for written in range(1, 20):
                    provenance.append(stream, record(written))
        assert (disk / "raw" / provenance.FILE_NAME).read_bytes().endswith(b"}\n")
        assert len(provenance.latest_records(disk / "raw")) == written
