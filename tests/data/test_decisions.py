"""Verdicts by policy, decisions by hand, versions of a data set, and the audit of it."""

import errno
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from drone.data import history, ledger
from drone.data.clean import ACROSS, NEAR, WITHIN, judge, seed_counts, steps_table
from drone.data.dataset import open_dataset
from drone.data.ledger import BY_HAND, Decision
from drone.data.prepare import Plan, PrepareSettings, map_here, plan
from drone.data.scan import Record
from drone.data.split import SplitSettings, assign
from drone.data.writing import apply, undo
from drone.errors import DataError
from drone.labels import CLASSES
from drone.serving.preprocess import Preprocessing
from tests.conftest import MadeUp
from tests.data import seed_set

SMALL = PrepareSettings(preprocessing=Preprocessing(side_px=32))


def record(path: str, number: int) -> Record:
    """What a look at a picture of that number finds."""
    no_picture = path.endswith((".svg", ".txt", ".ipynb"))
    phash = np.random.default_rng(number).bytes(32).hex()
    return Record(
        root="raw",
        path=path,
        class_name=path.split("/")[0],
        size_bytes=1000,
        md5=f"{number:032x}",
        phash="" if no_picture else phash,
        format="" if no_picture else "JPEG",
        mode="RGB",
        width=0 if no_picture else 400,
        height=0 if no_picture else 300,
        orientation=0,
        camera="",
        sharpness=100.0,
        brightness=0.5,
        problem="non-media" if no_picture else "",
        detail="",
    )


@pytest.fixture(scope="module")
def original() -> list[Record]:
    """A collection of the original's structure: 21,805 files."""
    records = [record(path, number) for path, number in seed_set.layout()]
    return sorted(records, key=lambda one: one.path)


def test_the_originals_policy_gives_the_originals_numbers(original: list[Record]) -> None:
    frame = judge(original, "seed", 56)
    counts = seed_counts(frame, CLASSES)
    assert counts.loc["errornous_file"].tolist() == [0, 7, 0, 13, 20]
    assert counts.loc["duplicate"].tolist() == [407, 159, 247, 1445, 2258]
    assert counts.loc["cross_duplicate"].tolist() == [0, 0, 70, 34, 104]
    assert counts.loc["removed"].tolist() == [407, 166, 317, 1486, 2376]
    steps = steps_table(frame, CLASSES)
    assert steps.loc["kept"].tolist() == [7931, 4003, 3306, 4189, 19429]
    np.testing.assert_array_equal(steps.drop(index="kept").sum(axis=0), steps.loc["kept"])


def test_our_default_judges_by_content(original: list[Record]) -> None:
    steps = steps_table(judge(original, "drop-all", 56), CLASSES)
    # Valid GIF and JFIF stay; text does not. No copy of a picture in two classes is kept.
    non_media = [path for path, _ in seed_set.layout() if path.endswith((".svg", ".txt", ".ipynb"))]
    assert steps.loc["non-media", "total"] == -len(non_media)
    text_copies = len(non_media) - len(
        {number for path, number in seed_set.layout() if path in non_media}
    )
    assert steps.loc[WITHIN, "total"] == -2258 + text_copies
    assert steps.loc[ACROSS].tolist() == [0, -85, -89, -34, -208]


def near_pair(path: str, other: str, size: tuple[int, int]) -> list[Record]:
    first, second = record(path, 1), record(other, 2)
    values = {**second.__dict__, "phash": first.phash, "width": size[0], "height": size[1]}
    return [first, Record(**values)]


def test_of_near_duplicates_the_known_one_stays_else_the_largest() -> None:
    pair = near_pair("Flying Birds/a.jpg", "Flying Birds/b.jpg", (800, 600))
    for known, kept in (((), [False, True]), ((pair[0].md5,), [True, False])):
        frame = judge(pair, "drop-all", 56, near="drop", known=known)
        assert frame["kept"].tolist() == kept
        lost = frame[~frame["kept"]].iloc[0]
        assert lost["reason"] == NEAR
        assert lost["duplicate_of"] == frame[frame["kept"]].iloc[0]["path"]
    assert judge(pair, "drop-all", 56)["kept"].all()


def hand(md5: str, action: str, class_name: str = "") -> Decision:
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


def decide(folder: Path, planned: Plan) -> tuple[list[Decision], list[str], list[str], str]:
    """Three pictures dropped, three relabelled, one kept, and one of two classes settled."""
    frame = planned.frame
    kept = frame[frame["kept"]].sort_values("md5")
    test = kept[kept["split"] == "test"]["md5"].tolist()
    birds = kept[kept["class_name"] == CLASSES[0]]["md5"].tolist()
    dropped, moved = test[:3], [md5 for md5 in birds if md5 not in test[:3]][:3]
    shared = frame.loc[frame["reason"] == ACROSS, "md5"].iloc[0]
    keep = next(md5 for md5 in test[3:] if md5 not in moved)
    given = [hand(md5, "drop") for md5 in dropped]
    given += [hand(md5, "relabel", CLASSES[3]) for md5 in (*moved, shared)]
    given.append(hand(keep, "keep"))
    file = folder / "decisions.jsonl"
    lines = [json.dumps(decision.__dict__) for decision in given]
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return ledger.read_by_hand(file, CLASSES), dropped, moved, shared


def test_decisions_go_into_the_ledger_and_can_be_undone(made_up: MadeUp, tmp_path: Path) -> None:
    out = tmp_path / "set"
    planned = plan([made_up.folder], SMALL, map_here)
    before, _ = apply(planned, out, map_here)
    told, test = ledger.read(out / ledger.NAME), before.split("test")
    decisions, dropped, moved, shared = decide(tmp_path, planned)
    again = plan([made_up.folder], SMALL, map_here, out, by_hand=decisions)
    steps = again.steps
    assert steps.loc[BY_HAND, "total"] == -3 and steps.loc["relabelled", "total"] == 0
    np.testing.assert_array_equal(steps.drop(index="kept").sum(axis=0), steps.loc["kept"])
    after, written = apply(again, out, map_here)
    assert written and after.fingerprint != before.fingerprint
    new = after.manifest.drop_duplicates("md5").set_index("md5")
    assert (new.loc[dropped, "reason"] == BY_HAND).all()
    assert (new.loc[moved, "class_name"] == CLASSES[3]).all()
    # The picture that two classes had is kept once, in the class that the person chose.
    kept = after.manifest[after.manifest["kept"] & (after.manifest["md5"] == shared)]
    assert kept["class_name"].tolist() == [CLASSES[3]]
    # No other picture has moved, and none of those that were dropped is read.
    old = before.manifest[before.manifest["split"] != ""].set_index("md5")["split"]
    assert old.equals(new.loc[old.index, "split"])
    read = {md5 for name in ("train", "validation", "test") for md5 in after.rows(name)["md5"]}
    assert not read & set(dropped)
    # What the labels were, and which pictures a person touched.
    given, touched = after.as_given("test")
    settled = new.loc[shared, "split"] == "test"
    assert set(test.paths) <= set(given.paths) and len(given) == len(test) + settled
    labels = dict(zip(given.paths, given.labels_N, strict=True))
    assert [labels[path] for path in test.paths] == test.labels_N.tolist()
    assert touched.sum() == settled + sum(old.get(md5) == "test" for md5 in (*dropped, *moved))
    # Taken in once: the same file again, or none, changes nothing.
    for more in (decisions, ()):
        same = plan([made_up.folder], SMALL, map_here, out, by_hand=more)
        assert not same.by_hand and not apply(same, out, map_here)[1]

    changes = history.diff(history.find(f"{out}@{before.fingerprint[:8]}"), after)
    assert changes["change"].value_counts().to_dict() == {
        "dropped": 3,
        "class": 3,
        "kept": 1,
        "reason": len(changes) - 7,
    }
    longer = ledger.read(out / ledger.NAME)
    assert longer[: len(told)] == told
    back = undo(out, map_here)
    assert back.fingerprint == before.fingerprint
    assert back.manifest.equals(before.manifest)
    assert ledger.read(out / ledger.NAME)[: len(longer)] == longer
    assert ledger.by_hand(ledger.read(out / ledger.NAME)) == {}
    calm = plan([made_up.folder], SMALL, map_here, out)
    assert calm.fingerprint == before.fingerprint and not apply(calm, out, map_here)[1]
    with pytest.raises(DataError, match="no version before this one"):
        undo(out, map_here)


def test_nothing_is_undone_when_a_picture_is_gone(made_up: MadeUp, tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "set"
    shutil.copytree(made_up.folder, raw)
    planned = plan([raw], SMALL, map_here)
    apply(planned, out, map_here)
    gone = raw / planned.frame.loc[planned.frame["kept"], "path"].iloc[5]
    gone.unlink()
    now = apply(plan([raw], SMALL, map_here, out), out, map_here)[0].fingerprint
    with pytest.raises(DataError, match=r"is not what it was when it was scanned.*Bring it back"):
        undo(out, map_here)
    assert open_dataset(out).fingerprint == now
    assert not list(tmp_path.glob(".set.*"))


@pytest.mark.parametrize("step", ["packing", "audit"])
def test_a_disk_that_fills_up_leaves_what_was_there(
    made_up: MadeUp, tmp_path: Path, step: str
) -> None:
    out = tmp_path / "set"
    before = apply(plan([made_up.folder], SMALL, map_here), out, map_here)[0].fingerprint
    other = PrepareSettings(policy="first", preprocessing=SMALL.preprocessing)

    def mapper(function, rows, label):  # type: ignore[no-untyped-def]
        if label == step:
            raise OSError(errno.ENOSPC, "No space left on device")
        return map_here(function, rows, label)

    with pytest.raises(DataError, match="No space left on device. Nothing was changed"):
        apply(plan([made_up.folder], other, map_here, out), out, mapper)
    assert open_dataset(out).fingerprint == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ('{"action": "drop"}', "line 2 names no picture"),
        (f'{{"md5": "{"0" * 32}", "action": "burn"}}', "action 'burn'; allowed are keep, drop"),
        (
            f'{{"md5": "{"0" * 32}", "action": "relabel", "class_name": "Winged Dron"}}',
            "did you mean 'Winged Drones'",
        ),
    ],
)
def test_decisions_that_say_nothing(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "decisions.jsonl"
    file.write_text(f"\n{line}\n")
    with pytest.raises(DataError, match=message):
        ledger.read_by_hand(file, CLASSES)
    with pytest.raises(DataError, match="cannot be read"):
        ledger.read_by_hand(tmp_path / "gone.jsonl", CLASSES)


def test_a_version_that_is_not_there(dataset_folder: Path) -> None:
    with pytest.raises(DataError, match=r"has no version 'ffff'; from new to old it has: [0-9a-f]"):
        history.find(f"{dataset_folder}@ffff")


@pytest.fixture(scope="module")
def dataset_folder(made_up: MadeUp, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audited") / "set"
    settings = PrepareSettings(policy="first", preprocessing=Preprocessing(side_px=32))
    planned = plan([made_up.folder], settings, map_here)
    known = planned.frame.loc[planned.frame["kept"], "md5"].head(5)
    lines = [
        json.dumps(
            {"md5": md5, "source": "open\u2028verse", "licence": f"by {number // 3}.0"},
            ensure_ascii=False,
        )
        for number, md5 in enumerate(known)
    ]
    file = made_up.folder / "provenance.jsonl"
    file.write_text("\n".join([*lines, "3", '{"md5": "cut sho']))
    try:
        return apply(planned, out, map_here)[0].folder
    finally:
        file.unlink()


def test_the_audit_counts_what_is_there(made_up: MadeUp, dataset_folder: Path) -> None:
    truth, tables = made_up.truth, dataset_folder / "tables"
    errors = pd.read_csv(tables / "errors.csv")
    assert dict(zip(errors["path"], errors["reason"], strict=True)) == truth.broken
    copies = pd.read_csv(tables / "copies.csv")
    found = [sorted(paths) for _, paths in copies.groupby("md5")["path"]]
    assert sorted(found) == sorted(truth.copies)
    across = {
        path
        for paths in truth.copies
        if len({p.split("/")[0] for p in paths}) > 1
        for path in paths
    }
    assert set(copies[copies["across"]]["path"]) == across
    near = pd.read_csv(tables / "near_duplicates.csv")
    assert sorted(sorted(paths) for _, paths in near.groupby("group")["path"]) == sorted(truth.near)
    sizes = pd.read_csv(tables / "sizes.csv").set_index("bin_px")["total"]
    manifest = open_dataset(dataset_folder).manifest
    longer = manifest.loc[manifest["width"] > 0, ["width", "height"]].max(axis=1)
    assert sizes.iloc[:-1].sum() == len(longer) and sizes.iloc[-1] == (longer < 224).sum()
    assert (sizes.iloc[:-1] > 0).all()  # Every bin has a drawing.
    formats = pd.read_csv(tables / "formats.csv")
    named = [
        path for path, kind in truth.odd.items() if kind in ("PNG named jpg", "JPEG named png")
    ]
    assert formats["name says otherwise"].sum() == len(named)
    origins = pd.read_csv(tables / "provenance.csv").set_index("licence")["pictures"]
    kept = int(manifest["kept"].sum())
    assert origins.to_dict() == {"by 0.0": 3, "by 1.0": 2, "not recorded": kept - 5}
    html = (dataset_folder / "audit.html").read_text()
    assert "http://" not in html and "https://" not in html
    assert html.count("data:image/jpeg;base64,") > 50
    (said,) = re.findall(r"<b>Leakage\.</b> (.*?)</p>", html)
    assert "byte-for-byte copy in train" in said


def test_the_leakage_is_what_random_splits_have(made_up: MadeUp) -> None:
    from drone.data.audit import leakage

    frame = plan([made_up.folder], PrepareSettings(policy="first"), map_here).frame
    expected = leakage(frame, SplitSettings())
    pictures = frame[frame["width"] > 0]
    rng = np.random.default_rng(0)
    exact = []
    for _ in range(400):
        split = rng.choice(["train", "validation", "test"], len(pictures), p=[0.7, 0.15, 0.15])
        train = set(pictures["md5"][split == "train"])
        exact.append(pictures["md5"][split == "test"].isin(train).sum())
    assert expected.exact == pytest.approx(np.mean(exact), rel=0.15)
    assert expected.twins > expected.exact > 0
    assert expected.test == pytest.approx(0.15 * len(pictures))


def test_a_relabelled_picture_keeps_its_split(original: list[Record]) -> None:
    some = original[::25]
    before = assign(judge(some, "first", 56), CLASSES, SplitSettings(), 56)
    by_hand = {
        md5: hand(md5, "relabel" if number % 2 else "drop", CLASSES[2] if number % 2 else "")
        for number, md5 in enumerate(before.loc[before["kept"], "md5"][:60])
    }
    after = assign(judge(some, "first", 56, by_hand=by_hand), CLASSES, SplitSettings(), 56)
    assert after["split"].equals(before["split"])


def test_a_picture_of_one_colour_is_an_outlier(made_up: MadeUp, tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "set"
    shutil.copytree(made_up.folder, raw)
    Image.new("RGB", (300, 200), "black").save(raw / "Winged Drones" / "black.png")
    folder = apply(plan([raw], SMALL, map_here), out, map_here)[0].folder
    outliers = pd.read_csv(folder / "tables" / "outliers.csv")
    black = outliers[outliers["path"] == "Winged Drones/black.png"]["what"]
    assert "blurred" in set(black)
