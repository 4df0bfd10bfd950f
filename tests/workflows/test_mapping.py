"""Few rows are mapped in this process, the rest of many on Ray."""

import os
import time

import pytest

from drone.cluster import connection
from drone.workflows.mapping import mapper

ROWS = [{"number": number} for number in range(200)]


def process_of(row: dict) -> dict:
    time.sleep(0.01)
    return {**row, "process": os.getpid()}


def test_little_work_needs_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "connected", None)
    with mapper() as mapped:
        results = mapped(process_of, ROWS, "numbering")
        assert mapped(process_of, [], "nothing") == []
    assert results == [{**row, "process": os.getpid()} for row in ROWS]


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_rest_of_much_work_goes_to_one_ray() -> None:
    with mapper(max_s_here=0.5) as mapped:
        first = mapped(process_of, ROWS, "numbering")
        second = mapped(process_of, ROWS, "numbering again")
    assert [row["number"] for row in first] == list(range(200))
    assert [row["number"] for row in second] == list(range(200))
    own = [row["number"] for row in first if row["process"] == os.getpid()]
    assert own == list(range(len(own))) and 0 < len(own) < 100
    assert all(row["process"] != os.getpid() for row in second)
