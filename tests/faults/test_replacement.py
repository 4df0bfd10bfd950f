"""A folder or file that is replaced is there in whole at any time, whatever is killed when."""

from pathlib import Path

import pytest

from drone import files
from drone.errors import DataError
from tests.faults.crash import killed_at_every_step
from tests.faults.updated import Updated, drop


@pytest.mark.slow
@pytest.mark.parametrize(("job", "exchange"), [("update", True), ("undo", False)])
def test_a_data_set_survives_a_kill_at_every_step(
    updated: Updated, job: str, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:  # As on a file system that cannot exchange two names.
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    second = [drop(updated.md5[1], "second")]

    def act() -> list[str]:
        return updated.update(second) if job == "update" else updated.undo()

    before = updated.state()
    act()
    after = updated.state()
    assert before != after
    steps, said = 0, []
    for step in killed_at_every_step(updated.restore, act):
        steps += 1
        said += updated.recover()
        assert updated.state() in (before, after), f"step {step}"
        assert [item.name for item in updated.place.iterdir()] == ["set"], f"step {step}"
    assert steps > 10
    assert any("left unfinished" in sentence for sentence in said)
    assert exchange or any("Restored" in sentence for sentence in said)
    updated.update(second)
    assert "second" in updated.state()[1]


def test_nothing_is_changed_when_a_data_set_cannot_be_replaced(
    updated: Updated, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = updated.state()

    def fail(new: Path, folder: Path) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "_exchange", fail)
    with pytest.raises(DataError, match="Input/output error. Nothing was changed"):
        updated.update([drop(updated.md5[1], "second")])
    assert updated.state() == before
    assert [item.name for item in updated.place.iterdir()] == ["set"]


def test_a_linked_data_set_stays_a_link(updated: Updated, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere"
    updated.out.rename(real)
    updated.out.symlink_to(real)
    updated.update([drop(updated.md5[1], "second")])
    assert updated.out.is_symlink() and updated.state()[1] == {"first", "second"}
