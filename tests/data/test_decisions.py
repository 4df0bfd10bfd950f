"""Decisions by hand, the ledger, and earlier versions of a data set."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drone.curation.audit_page import write_audit
from drone.data.dataset import Dataset, open_dataset
from drone.data.prepare import history, ledger
from drone.data.prepare.ledger import LEDGER_FILE, Decision
from drone.data.prepare.plan import PreparePlan, PrepareSettings, map_sequentially, plan_dataset
from drone.data.prepare.verdicts import ACROSS, BY_HAND
from drone.data.prepare.write import undo_last, write_dataset
from drone.errors import DataError
from drone.labels import CLASSES
from tests.conftest import MadeUp
from tests.data.preparing import SMALL, prepare


def by_hand_decision(md5: str, action: str, class_name: str = "") -> Decision:
    return Decision(
        md5=md5,
        path="",
        action=action,
        reason=BY_HAND,
        evidence="",
        by="me",
        when="",
        class_name=class_name,
    )


def decide(folder: Path, planned: PreparePlan) -> tuple[list[Decision], list[str], list[str], str]:
    """Three images dropped, three relabelled, one kept, and one of two classes settled."""
    frame = planned.manifest
    # Of files without a copy: a decision on one is a decision on its copies too.
    single = ~frame["md5"].duplicated(keep=False)
    kept = frame[frame["kept"] & single].sort_values("md5")
    test = kept[kept["split"] == "test"]["md5"].tolist()
    birds = kept[kept["class_name"] == CLASSES[0]]["md5"].tolist()
    dropped, moved = test[:3], [md5 for md5 in birds if md5 not in test[:3]][:3]
    shared = frame.loc[frame["reason"] == ACROSS, "md5"].iloc[0]
    keep = next(md5 for md5 in test[3:] if md5 not in moved)
    decisions = [by_hand_decision(md5, "drop") for md5 in dropped]
    decisions += [by_hand_decision(md5, "relabel", CLASSES[3]) for md5 in (*moved, shared)]
    decisions.append(by_hand_decision(keep, "keep"))
    file = folder / "decisions.jsonl"
    lines = [json.dumps(decision.__dict__) for decision in decisions]
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return ledger.read_by_hand(file, CLASSES), dropped, moved, shared


def test_decisions_go_into_the_ledger_and_can_be_undone(made_up: MadeUp, tmp_path: Path) -> None:
    out = tmp_path / "set"
    planned = plan_dataset([made_up.folder], SMALL, map_sequentially)
    before, _ = write_dataset(planned, out, map_sequentially)
    ledger_before, test = ledger.read(out / LEDGER_FILE), before.split("test")
    decisions, dropped, moved, shared = decide(tmp_path, planned)
    again = plan_dataset([made_up.folder], SMALL, map_sequentially, out, decisions=decisions)
    steps = again.steps
    assert steps.loc[BY_HAND, "total"] == -3 and steps.loc["relabelled", "total"] == 0
    np.testing.assert_array_equal(steps.drop(index="kept").sum(axis=0), steps.loc["kept"])
    after, written = write_dataset(again, out, map_sequentially)
    assert written and after.fingerprint != before.fingerprint
    new = after.manifest.drop_duplicates("md5").set_index("md5")
    assert (new.loc[dropped, "reason"] == BY_HAND).all()
    assert (new.loc[moved, "class_name"] == CLASSES[3]).all()
    # The image that two classes had is kept once, in the class that the user chose.
    kept = after.manifest[after.manifest["kept"] & (after.manifest["md5"] == shared)]
    assert kept["class_name"].tolist() == [CLASSES[3]]
    # No other image has moved, and none of those that were dropped is read.
    old = before.manifest[before.manifest["split"] != ""].set_index("md5")["split"]
    assert old.equals(new.loc[old.index, "split"])
    read = {md5 for name in ("train", "validation", "test") for md5 in after.rows(name)["md5"]}
    assert not read & set(dropped)
    # The labels before the review, and which images it changed.
    original, changed = after.split_before_review("test")
    settled = new.loc[shared, "split"] == "test"
    assert set(test.paths) <= set(original.paths) and len(original) == len(test) + settled
    labels = dict(zip(original.paths, original.labels_N, strict=True))
    assert [labels[path] for path in test.paths] == test.labels_N.tolist()
    assert changed.sum() == settled + sum(old.get(md5) == "test" for md5 in (*dropped, *moved))
    # Recorded once: the same file again, or none, changes nothing.
    for more in (decisions, ()):
        same = plan_dataset([made_up.folder], SMALL, map_sequentially, out, decisions=more)
        assert not same.new_decisions and not write_dataset(same, out, map_sequentially)[1]

    changes = history.diff(history.open_version(f"{out}@{before.fingerprint[:8]}"), after)
    assert changes["change"].value_counts().to_dict() == {
        "dropped": 3,
        "class": 3,
        "kept": 1,
        "reason": len(changes) - 7,
    }
    longer = ledger.read(out / LEDGER_FILE)
    assert longer[: len(ledger_before)] == ledger_before
    back = undo_last(out, map_sequentially)
    assert back.fingerprint == before.fingerprint
    assert back.manifest.equals(before.manifest)
    assert ledger.read(out / LEDGER_FILE)[: len(longer)] == longer
    assert ledger.by_hand(ledger.read(out / LEDGER_FILE)) == {}
    calm = plan_dataset([made_up.folder], SMALL, map_sequentially, out)
    assert (
        calm.fingerprint == before.fingerprint and not write_dataset(calm, out, map_sequentially)[1]
    )
    with pytest.raises(DataError, match="no version before this one"):
        undo_last(out, map_sequentially)


def test_nothing_is_undone_when_an_image_is_gone(made_up: MadeUp, tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "set"
    shutil.copytree(made_up.folder, raw)
    manifest = prepare(raw, out).manifest
    gone = raw / manifest.loc[manifest["kept"], "path"].iloc[5]
    gone.unlink()
    updated = prepare(raw, out).fingerprint
    with pytest.raises(
        DataError, match=r"has changed since it was scanned.*Restore the file, or prepare the data"
    ):
        undo_last(out, map_sequentially)
    assert open_dataset(out).fingerprint == updated
    assert not list(tmp_path.glob(".set.*"))


@pytest.mark.parametrize("step", ["packing", "audit"])
def test_a_disk_that_fills_up_leaves_the_data_set_as_it_was(
    made_up: MadeUp, tmp_path: Path, step: str
) -> None:
    out = tmp_path / "set"
    before = prepare(made_up.folder, out).fingerprint
    other = PrepareSettings(policy="first", preprocessing=SMALL.preprocessing)

    def mapper(function, rows, label):  # type: ignore[no-untyped-def]
        if label == step:
            raise OSError(errno.ENOSPC, "No space left on device")
        return map_sequentially(function, rows, label)

    planned = plan_dataset([made_up.folder], other, map_sequentially, out)
    with pytest.raises(
        DataError, match="No space left on device. Nothing was changed. Free some space"
    ):
        write_dataset(planned, out, mapper, write_audit=write_audit)
    assert open_dataset(out).fingerprint == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_a_file_name_may_hold_line_separators(tmp_path: Path) -> None:
    decision = replace(by_hand_decision("0" * 32, "drop"), path="Flying Birds/a\u2028b\x85c.jpg")
    ledger.append(tmp_path / LEDGER_FILE, [decision])
    ledger.append(tmp_path / LEDGER_FILE, [decision])
    assert ledger.read(tmp_path / LEDGER_FILE) == [decision, decision]
    assert ledger.read_by_hand(tmp_path / LEDGER_FILE, CLASSES) == [decision, decision]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ('{"action": "drop"}', "line 2 names no image"),
        (f'{{"md5": "{"0" * 32}", "action": "burn"}}', "action 'burn'; allowed are keep, drop"),
        (
            f'{{"md5": "{"0" * 32}", "action": "relabel", "class_name": "Winged Dron"}}',
            "did you mean 'Winged Drones'",
        ),
    ],
)
def test_lines_that_are_no_decisions(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "decisions.jsonl"
    file.write_text(f"\n{line}\n")
    with pytest.raises(DataError, match=message):
        ledger.read_by_hand(file, CLASSES)
    with pytest.raises(DataError, match="cannot be read"):
        ledger.read_by_hand(tmp_path / "gone.jsonl", CLASSES)


def test_a_version_that_is_not_there(dataset: Dataset) -> None:
    with pytest.raises(
        DataError, match=r"has no version 'ffff'; its versions from new to old are [0-9a-f]"
    ):
        history.open_version(f"{dataset.folder}@ffff")
