"""From raw folders to a data set, held against a made-up set whose truth is known."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drone.data import ledger
from drone.data.clean import ACROSS, BRIDGE, WITHIN, judge, steps_table
from drone.data.dataset import Dataset, open_dataset
from drone.data.prepare import PrepareSettings, map_here, plan
from drone.data.scan import Record, Source, list_sources, scan_file
from drone.data.split import SPLITS, SplitSettings, assign
from drone.data.writing import apply, check_writable
from drone.errors import ConfigError, DataError
from drone.labels import CLASSES
from drone.serving.preprocess import Preprocessing, to_pixels
from tests.conftest import MadeUp

SMALL = PrepareSettings(preprocessing=Preprocessing(side_px=32))


def test_another_share_of_training_and_validation(dataset: Dataset) -> None:
    own = {name: set(dataset.split(name).paths) for name in ("train", "validation", "test")}
    pool = own["train"] | own["validation"]
    groups = dataset.manifest.set_index("path")["group"]
    held_out: list[set[str]] = []
    for number in range(3):
        train, validation = dataset.resplit(number)
        assert set(train.paths) | set(validation.paths) == pool
        assert not set(groups[list(train.paths)]) & set(groups[list(validation.paths)])
        assert own["validation"] <= set(train.paths)
        assert all(validation.counts_K > 0)
        assert abs(len(validation) - len(own["validation"])) <= len(own["validation"]) / 2
        assert not any(earlier & set(validation.paths) for earlier in held_out)
        held_out.append(set(validation.paths))
        positions = np.arange(len(validation))
        by_key = {int(key): n for n, key in enumerate(dataset.split("train").keys_N)}
        original = np.array([by_key[int(key)] for key in validation.keys_N])
        assert np.array_equal(validation.gather(positions), dataset.split("train").gather(original))


def record(path: str, md5: str = "", phash: str = "", problem: str = "") -> Record:
    """A record by hand; another md5 makes another picture."""
    md5 = md5 or path
    seed = int.from_bytes(md5.encode(), "big") % 2**32
    return Record(
        root="raw",
        path=path,
        class_name=path.split("/")[0],
        size_bytes=1,
        md5=md5,
        phash="" if problem else phash or np.random.default_rng(seed).bytes(32).hex(),
        format="JPEG",
        mode="RGB",
        width=9,
        height=9,
        orientation=0,
        camera="",
        sharpness=100.0,
        brightness=0.5,
        problem=problem,
        detail="",
    )


@pytest.mark.parametrize("policy", ["drop-all", "first", "majority"])
def test_every_file_gets_the_verdict_of_the_truth(made_up: MadeUp, policy: str) -> None:
    planned = plan([made_up.folder], PrepareSettings(policy=policy), map_here)
    frame = planned.frame
    dropped = frame[~frame["kept"]]
    assert dict(zip(dropped["path"], dropped["reason"], strict=True)) == made_up.truth.reasons(
        policy
    )
    assert sorted(frame["path"]) == made_up.truth.files


def test_near_duplicates_are_found_and_nothing_else(made_up: MadeUp) -> None:
    planned = plan([made_up.folder], PrepareSettings(policy="first"), map_here)
    kept = planned.frame[planned.frame["kept"]]
    groups = [sorted(paths) for _, paths in kept.groupby("group")["path"] if len(paths) > 1]
    assert sorted(groups) == sorted(made_up.truth.near)


def test_steps_add_up(made_up: MadeUp) -> None:
    steps = plan([made_up.folder], PrepareSettings(), map_here).steps
    np.testing.assert_array_equal(steps.drop(index="kept").sum(axis=0), steps.loc["kept"])
    assert steps.loc["found", "total"] == len(made_up.truth.files)


def test_no_group_straddles_splits_and_shares_are_kept(dataset: Dataset) -> None:
    kept = dataset.manifest[dataset.manifest["kept"]]
    assert (kept.groupby("group")["split"].nunique() == 1).all()
    for _, own in kept.groupby("class_name"):
        shares = own["split"].value_counts(normalize=True)
        assert shares["train"] == pytest.approx(0.70, abs=0.08)
        assert shares["test"] == pytest.approx(0.15, abs=0.08)


def test_packed_pixels_are_those_that_serving_makes(dataset: Dataset) -> None:
    for name in SPLITS:
        split = dataset.split(name)
        pixels = split.gather(np.arange(len(split)))
        for row, path in enumerate(split.paths[:12]):
            root = dataset.manifest.set_index("path").loc[path, "root"]
            expected = to_pixels((Path(root) / path).read_bytes(), dataset.preprocessing)
            np.testing.assert_array_equal(pixels[row], expected)


def test_same_input_gives_the_same_bytes(made_up: MadeUp, tmp_path: Path) -> None:
    first, second = (
        apply(plan([made_up.folder], SMALL, map_here), tmp_path / name, map_here)[0]
        for name in "ab"
    )
    assert first.fingerprint == second.fingerprint
    for file in sorted(first.folder.rglob("*")):
        if file.is_file() and file.name != ledger.NAME:  # The ledger says when.
            other = second.folder / file.relative_to(first.folder)
            assert file.read_bytes() == other.read_bytes(), file


def test_originals_are_untouched_and_a_second_run_writes_nothing(
    made_up: MadeUp, tmp_path: Path
) -> None:
    def state() -> list[tuple[str, int, int]]:
        files = sorted(made_up.folder.rglob("*"))
        return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]

    before = state()
    out = tmp_path / "set"
    planned = plan([made_up.folder], SMALL, map_here)
    assert apply(planned, out, map_here)[1]
    written = (out / "manifest.parquet").stat().st_mtime_ns
    again = plan([made_up.folder], SMALL, map_here, out)
    assert not apply(again, out, map_here)[1]
    assert (out / "manifest.parquet").stat().st_mtime_ns == written
    assert state() == before


def test_new_files_leave_the_old_ones_in_their_splits(made_up: MadeUp, tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "set"
    shutil.copytree(made_up.folder, raw)
    late = sorted(raw.glob("*/*_001*.jpg"))
    kept_back = [(file, file.read_bytes()) for file in late]
    for file in late:
        file.unlink()
    old = apply(plan([raw], SMALL, map_here), out, map_here)[0].manifest
    for file, data in kept_back:
        file.write_bytes(data)
    new = apply(plan([raw], SMALL, map_here, out), out, map_here)[0].manifest
    assert new["kept"].sum() > old["kept"].sum()
    before = old[old["kept"]].set_index("md5")["split"]
    after = new[new["kept"]].set_index("md5")["split"]
    both = before.index.intersection(after.index)
    pd.testing.assert_series_equal(before[both], after[both])
    assert (new[new["kept"]].groupby("group")["split"].nunique() == 1).all()


def test_a_new_file_that_would_join_two_splits_is_left_out() -> None:
    base = np.random.default_rng(0).bytes(32)
    left = bytes([base[0] ^ 0b1111, *base[1:]])
    # 30 bits from one side, 30 from the other, the sides 60 apart.
    right = bytes(byte ^ (0b11 if 1 <= place <= 28 else 0) for place, byte in enumerate(left))
    bridge = bytes(byte ^ (0b11 if 1 <= place <= 14 else 0) for place, byte in enumerate(left))
    others = [record(f"{name}/{number}") for name in CLASSES for number in range(10)]
    ends = [
        record("Flying Birds/left", phash=left.hex()),
        record("Flying Birds/right", phash=right.hex()),
    ]
    settings = SplitSettings()
    old = assign(judge([*others, *ends], "drop-all", 50), CLASSES, settings, 50)
    splits = old.set_index("md5")["split"].to_dict()
    splits |= {"Flying Birds/left": "train", "Flying Birds/right": "test"}
    joined = [*others, *ends, record("Flying Birds/bridge", phash=bridge.hex())]
    new = assign(judge(joined, "drop-all", 50), CLASSES, settings, 50, splits).set_index("path")
    assert new.loc["Flying Birds/bridge", "reason"] == BRIDGE
    assert new.loc["Flying Birds/left", "split"] == "train"
    assert new.loc["Flying Birds/right", "split"] == "test"
    assert new.loc["Flying Birds/left", "group"] != new.loc["Flying Birds/right", "group"]


def test_policies_on_three_copies() -> None:
    copies = [
        record("Flying Birds/a", md5="x"),
        record("Winged Drones/b", md5="x"),
        record("Winged Drones/c", md5="x"),
    ]
    reasons = {
        policy: judge(copies, policy, 50)["reason"].tolist()
        for policy in ("drop-all", "first", "majority")
    }
    assert reasons == {
        "drop-all": [ACROSS, ACROSS, WITHIN],
        "first": ["", ACROSS, WITHIN],
        "majority": [ACROSS, "", WITHIN],
    }


def test_broken_files_are_not_counted_as_copies_of_each_other() -> None:
    empty = [record(f"Flying Birds/{name}", md5="d41d8", problem="empty") for name in "ab"]
    frame = judge(empty, "drop-all", 50)
    assert frame["reason"].tolist() == ["empty", "empty"]
    assert steps_table(frame, CLASSES).loc["kept", "total"] == 0


def test_the_originals_table(made_up: MadeUp, tmp_path: Path) -> None:
    settings = PrepareSettings(policy="first", preprocessing=Preprocessing(side_px=32))
    out = apply(plan([made_up.folder], settings, map_here), tmp_path / "set", map_here)[0].folder
    table = pd.read_csv(out / "tables" / "eda_duplicate_list.csv", keep_default_na=False)
    columns = "filename classname errornous_file duplicate parent_img cross_duplicate"
    assert list(table.columns) == [*columns.split(), "duplicate_class"]
    expected = made_up.truth.reasons("first")
    assert table["duplicate"].sum() == sum(reason == WITHIN for reason in expected.values())
    assert table["cross_duplicate"].sum() == sum(reason == ACROSS for reason in expected.values())
    assert table["errornous_file"].sum() == len(made_up.truth.broken)


def test_the_ledger_says_each_thing_once(made_up: MadeUp, tmp_path: Path) -> None:
    out = tmp_path / "set"
    apply(plan([made_up.folder], SMALL, map_here), out, map_here)
    written = ledger.read(out / ledger.NAME)
    expected = made_up.truth.reasons("drop-all")
    assert {decision.path: decision.reason for decision in written} == expected
    lenient = PrepareSettings(policy="first", preprocessing=Preprocessing(side_px=32))
    apply(plan([made_up.folder], lenient, map_here, out), out, map_here)
    longer = ledger.read(out / ledger.NAME)
    assert longer[: len(written)] == written
    standing = {key: decision.action for key, decision in ledger.standing(longer).items()}
    dropped = {path for (path, _), action in standing.items() if action == "drop"}
    assert dropped == set(made_up.truth.reasons("first"))


class TestBadInput:
    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nowhere does not exist.*one folder a class"):
            list_sources([tmp_path / "nowhere"])

    def test_no_class_folder(self, tmp_path: Path) -> None:
        (tmp_path / "cats").mkdir()
        with pytest.raises(DataError, match=r"No folder .* holds a class. Folders there: cats"):
            list_sources([tmp_path])

    def test_an_empty_class(self, tmp_path: Path) -> None:
        for name in CLASSES:
            (tmp_path / name).mkdir()
            (tmp_path / name / "a.jpg").touch()
        (tmp_path / "Winged Drones" / "a.jpg").unlink()
        with pytest.raises(DataError, match=r"no file of 'Winged Drones'.*--classes"):
            list_sources([tmp_path])

    def test_one_class_only(self) -> None:
        with pytest.raises(ConfigError, match="at least two different classes"):
            PrepareSettings(classes=("Flying Birds",))

    def test_fewer_pictures_than_splits(self) -> None:
        records = [record(f"{name}/{number}") for name in CLASSES for number in range(5)]
        few = [item for item in records if item.path not in ("Winged Drones/0", "Winged Drones/1")]
        few = [item for item in few if item.path != "Winged Drones/2"]
        with pytest.raises(DataError, match=r"Too few different pictures.*Winged Drones: 2"):
            assign(judge(few, "drop-all", 50), CLASSES, SplitSettings(), 50)

    def test_an_output_that_is_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").touch()
        with pytest.raises(DataError, match="not a prepared data set.*nothing of yours"):
            check_writable(tmp_path)

    def test_an_output_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="cannot be written"):
            check_writable(tmp_path / "file" / "set")

    def test_a_damaged_data_set(self, dataset: Dataset, tmp_path: Path) -> None:
        damaged = tmp_path / "set"
        shutil.copytree(dataset.folder, damaged)
        shard = damaged / "pixels" / "shard-00000.npy"
        shard.write_bytes(shard.read_bytes()[:-100])
        with pytest.raises(DataError, match="damaged"):
            open_dataset(damaged).split("train")
        description = json.loads((damaged / "dataset.json").read_text())
        (damaged / "dataset.json").write_text(json.dumps({**description, "schema": 99}))
        with pytest.raises(DataError, match="schema 99"):
            open_dataset(damaged)

    def test_no_data_set(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="ray_jobs/prepare.py --raw"):
            open_dataset(tmp_path)

    def test_an_unreadable_file_is_a_row(self, tmp_path: Path) -> None:
        source = Source(root=str(tmp_path), path="Flying Birds/gone.jpg", class_name=CLASSES[0])
        assert scan_file(source, Preprocessing()).problem == "unreadable"


def test_folders_are_matched_tolerantly_and_loops_of_links_end(tmp_path: Path) -> None:
    for folder in ("flying_birds", "LargeQuadCopters", "small quadcopter", "Winged-Drones", "junk"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a, b.jpg").touch()
    (tmp_path / "flying_birds" / "loop").symlink_to(tmp_path, target_is_directory=True)
    listing = list_sources([tmp_path])
    assert sorted(source.class_name for source in listing.sources) == sorted(CLASSES)
    assert listing.unknown_folders == (str(tmp_path / "junk"),)


@pytest.mark.real
def test_real_pictures(real_pictures: Path, tmp_path: Path) -> None:
    planned = plan([real_pictures], SMALL, map_here)
    assert planned.steps.loc["found"].tolist() == [201, 201, 201, 201, 804]
    assert planned.steps.loc[WITHIN].tolist() == [0, -1, -1, -6, -8]
    assert planned.splits.loc["test", "total"] == pytest.approx(0.15 * 796, abs=4)
    # Seen by eye: every group holds one photograph in several crops or encodings.
    assert len(planned.near_groups) == 16
