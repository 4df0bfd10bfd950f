"""From raw folders to a data set, compared with a made-up set whose truth is known."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drone.curation.audit_page import write_audit
from drone.data.dataset import SCHEMA, SPLITS, Dataset, open_dataset
from drone.data.prepare import ledger
from drone.data.prepare.class_names import check_classes
from drone.data.prepare.clean import assign_verdicts, steps_table
from drone.data.prepare.listing import RawFile, list_raw_files
from drone.data.prepare.plan import PrepareSettings, map_sequentially, plan_dataset
from drone.data.prepare.scan import ScanRecord, scan_file
from drone.data.prepare.split import SplitSettings, assign_splits
from drone.data.prepare.verdicts import ACROSS, BRIDGE, WITHIN
from drone.data.prepare.write import write_dataset, writing
from drone.errors import ConfigError, DataError
from drone.files import seal
from drone.labels import CLASSES, ClassSet
from drone.serving.preprocess import Preprocessing, to_pixels
from drone.workflows.preparation import Preparation
from drone.workflows.requests import PrepareRequest
from ray_jobs.dataset_tables import show_plan
from tests.conftest import MadeUp
from tests.data.preparing import SMALL, prepare

FIRST = PrepareSettings(policy="first", preprocessing=SMALL.preprocessing)


def test_folds_keep_groups_whole_and_test_untouched(dataset: Dataset) -> None:
    images = dataset.development()
    parts = [dataset.split(name) for name in ("train", "validation")]
    assert images.paths == parts[0].paths + parts[1].paths
    folds_N = dataset.fold_numbers(4)
    assert set(folds_N) == {0, 1, 2, 3}
    group = dataset.manifest.set_index("path")["group"][list(images.paths)]
    assert pd.Series(folds_N, index=group.index).groupby(group).nunique().max() == 1
    sizes = np.bincount(folds_N)
    assert sizes.max() - sizes.min() <= len(images) / 8
    for number in range(4):
        held_out = images.subset("validation", np.flatnonzero(folds_N == number))
        assert all(held_out.counts_K > 0)
        positions = np.arange(len(held_out))
        assert np.array_equal(
            held_out.gather(positions), images.gather(np.flatnonzero(folds_N == number))
        )
    with pytest.raises(DataError, match="too few for 4000 folds. Add images, or lower --folds"):
        dataset.fold_numbers(4000)


def record(path: str, md5: str = "", phash: str = "", problem: str = "") -> ScanRecord:
    """A made-up record; another md5 gives another image."""
    md5 = md5 or path
    seed = int.from_bytes(md5.encode(), "big") % 2**32
    return ScanRecord(
        root="raw",
        path=path,
        class_name=path.split("/")[0],
        size_bytes=1,
        md5=md5,
        content="" if problem else md5,
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
    planned = plan_dataset([made_up.folder], PrepareSettings(policy=policy), map_sequentially)
    frame = planned.manifest
    dropped = frame[~frame["kept"]]
    assert dict(
        zip(dropped["path"], dropped["reason"], strict=True)
    ) == made_up.truth.expected_reasons(policy)
    assert sorted(frame["path"]) == made_up.truth.files


def test_near_duplicates_are_found_and_nothing_else(made_up: MadeUp) -> None:
    planned = plan_dataset([made_up.folder], PrepareSettings(policy="first"), map_sequentially)
    kept = planned.manifest[planned.manifest["kept"]]
    groups = [sorted(paths) for _, paths in kept.groupby("group")["path"] if len(paths) > 1]
    assert sorted(groups) == sorted(made_up.truth.near_duplicates)


def test_steps_add_up(made_up: MadeUp) -> None:
    steps = plan_dataset([made_up.folder], PrepareSettings(), map_sequentially).steps
    np.testing.assert_array_equal(steps.drop(index="kept").sum(axis=0), steps.loc["kept"])
    assert steps.loc["found", "total"] == len(made_up.truth.files)


def test_no_group_straddles_splits_and_shares_are_kept(dataset: Dataset) -> None:
    kept = dataset.manifest[dataset.manifest["kept"]]
    assert (kept.groupby("group")["split"].nunique() == 1).all()
    for _, images in kept.groupby("class_name"):
        shares = images["split"].value_counts(normalize=True)
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
        prepare(made_up.folder, tmp_path / name, write_audit=write_audit) for name in "ab"
    )
    assert (first.folder / "audit.html").is_file()
    assert first.fingerprint == second.fingerprint
    for file in sorted(first.folder.rglob("*")):
        if file.is_file() and file.name != ledger.LEDGER_FILE:  # The ledger holds the time.
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
    planned = plan_dataset([made_up.folder], SMALL, map_sequentially)
    assert write_dataset(planned, out, map_sequentially)[1]
    written = (out / "manifest.parquet").stat().st_mtime_ns
    again = plan_dataset([made_up.folder], SMALL, map_sequentially, out)
    assert not write_dataset(again, out, map_sequentially)[1]
    assert (out / "manifest.parquet").stat().st_mtime_ns == written
    assert state() == before


def test_new_files_leave_the_old_ones_in_their_splits(made_up: MadeUp, tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "set"
    shutil.copytree(made_up.folder, raw)
    late = sorted(raw.glob("*/*_001*.jpg"))
    contents = [(file, file.read_bytes()) for file in late]
    for file in late:
        file.unlink()
    old = prepare(raw, out).manifest
    for file, data in contents:
        file.write_bytes(data)
    new = prepare(raw, out).manifest
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
    right = bytes(byte ^ (0b11 if 1 <= index <= 28 else 0) for index, byte in enumerate(left))
    bridge = bytes(byte ^ (0b11 if 1 <= index <= 14 else 0) for index, byte in enumerate(left))
    others = [record(f"{name}/{number}") for name in CLASSES for number in range(10)]
    ends = [
        record("Flying Birds/left", phash=left.hex()),
        record("Flying Birds/right", phash=right.hex()),
    ]
    settings = SplitSettings()
    old = assign_splits(assign_verdicts([*others, *ends], "drop-all", 50), CLASSES, settings, 50)
    splits = old.set_index("md5")["split"].to_dict()
    splits |= {"Flying Birds/left": "train", "Flying Birds/right": "test"}
    joined = [*others, *ends, record("Flying Birds/bridge", phash=bridge.hex())]
    new = assign_splits(
        assign_verdicts(joined, "drop-all", 50), CLASSES, settings, 50, splits
    ).set_index("path")
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
        policy: assign_verdicts(copies, policy, 50)["reason"].tolist()
        for policy in ("drop-all", "first", "majority")
    }
    assert reasons == {
        "drop-all": [ACROSS, ACROSS, WITHIN],
        "first": ["", ACROSS, WITHIN],
        "majority": [ACROSS, "", WITHIN],
    }


def test_broken_files_are_not_counted_as_copies_of_each_other() -> None:
    empty = [record(f"Flying Birds/{name}", md5="d41d8", problem="empty") for name in "ab"]
    frame = assign_verdicts(empty, "drop-all", 50)
    assert frame["reason"].tolist() == ["empty", "empty"]
    assert steps_table(frame, CLASSES).loc["kept", "total"] == 0


def test_the_originals_table(made_up: MadeUp, tmp_path: Path) -> None:
    out = prepare(made_up.folder, tmp_path / "set", FIRST).folder
    table = pd.read_csv(out / "tables" / "eda_duplicate_list.csv", keep_default_na=False)
    columns = "filename classname errornous_file duplicate parent_img cross_duplicate"
    assert list(table.columns) == [*columns.split(), "duplicate_class"]
    expected = made_up.truth.expected_reasons("first")
    assert table["duplicate"].sum() == sum(reason == WITHIN for reason in expected.values())
    assert table["cross_duplicate"].sum() == sum(reason == ACROSS for reason in expected.values())
    assert table["errornous_file"].sum() == len(made_up.truth.broken)


def test_the_ledger_records_each_verdict_once(made_up: MadeUp, tmp_path: Path) -> None:
    out = tmp_path / "set"
    prepare(made_up.folder, out)
    written = ledger.read(out / ledger.LEDGER_FILE)
    expected = made_up.truth.expected_reasons("drop-all")
    assert {decision.path: decision.reason for decision in written} == expected
    prepare(made_up.folder, out, FIRST)
    longer = ledger.read(out / ledger.LEDGER_FILE)
    assert longer[: len(written)] == written
    in_force = ledger.verdicts_in_force(longer)
    dropped = {path for (path, _), decision in in_force.items() if decision.action == "drop"}
    assert dropped == set(made_up.truth.expected_reasons("first"))


def test_formats_that_are_not_read_are_named_before_the_steps(
    made_up: MadeUp, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(made_up.folder, raw)
    for number in range(2):
        (raw / CLASSES[0] / f"{number}.jpg").write_bytes(b"\xff\x0a" + bytes(50 + number))
    plan = plan_dataset([raw], SMALL, map_sequentially)
    request = PrepareRequest(raw=(str(raw),), out=tmp_path / "set", dry_run=True)
    show_plan(Preparation(plan, []), request)
    shown = " ".join("".join(capfd.readouterr()).split())
    advice = shown.index("2 files are left out. JPEG XL files are not supported. Convert")
    assert advice < shown.index("Files by class")
    rows = plan.manifest[plan.manifest["detail"].str.startswith("JPEG XL")]
    assert rows["reason"].tolist() == ["unsupported"] * 2
    assert rows["detail"].str.contains("`djxl FILE image.jpg`").all()


class TestBadInput:
    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nowhere does not exist.*one folder per class"):
            list_raw_files([tmp_path / "nowhere"])

    def test_no_class_folder(self, tmp_path: Path) -> None:
        (tmp_path / "cats").mkdir()
        with pytest.raises(DataError, match=r"No folder .* matches a class. Folders there: cats"):
            list_raw_files([tmp_path])

    def test_an_empty_class(self, tmp_path: Path) -> None:
        for name in CLASSES:
            (tmp_path / name).mkdir()
            (tmp_path / name / "a.jpg").touch()
        (tmp_path / "Winged Drones" / "a.jpg").unlink()
        with pytest.raises(DataError, match=r"no file of 'Winged Drones'.*--classes"):
            list_raw_files([tmp_path])

    def test_one_class_only(self) -> None:
        with pytest.raises(ConfigError, match="has 1 class; a data set has from 2 to 200"):
            check_classes(ClassSet.of(("Flying Birds",)))

    def test_fewer_images_than_splits(self) -> None:
        records = [record(f"{name}/{number}") for name in CLASSES for number in range(5)]
        few = [item for item in records if item.path not in ("Winged Drones/0", "Winged Drones/1")]
        few = [item for item in few if item.path != "Winged Drones/2"]
        broken = [record(f"Winged Drones/b{number}", problem="undecodable") for number in range(4)]
        verdicts = assign_verdicts([*few, *broken], "drop-all", 50)
        message = r"Winged Drones has 2 different images and needs 3 \(left out: 4 undecodable\)\."
        with pytest.raises(DataError, match=message) as raised:
            assign_splits(verdicts, CLASSES, SplitSettings(), 50)
        assert "Flying" not in str(raised.value) and "threshold" not in str(raised.value)

    def test_a_class_of_frames_that_are_all_alike(self) -> None:
        records = [record(f"{name}/{number}") for name in CLASSES[:3] for number in range(5)]
        frames = [record(f"Winged Drones/{number}", phash="ab" * 32) for number in range(40)]
        message = (
            r"Winged Drones has 1 different image among 40, the others being near duplicates, and "
            r"needs 3\. .*or lower --near-duplicate-threshold, which is 50"
        )
        with pytest.raises(DataError, match=message):
            verdicts = assign_verdicts([*records, *frames], "drop-all", 50)
            assign_splits(verdicts, CLASSES, SplitSettings(), 50)

    def test_an_output_that_is_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").touch()
        refused = pytest.raises(DataError, match="not a prepared data set.*nothing of yours")
        with refused, writing(tmp_path, print):
            pass

    def test_an_output_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        refused = pytest.raises(DataError, match="cannot be written")
        with refused, writing(tmp_path / "file" / "set", print):
            pass

    def test_a_damaged_data_set(self, dataset: Dataset, tmp_path: Path) -> None:
        damaged = tmp_path / "set"
        shutil.copytree(dataset.folder, damaged)
        shard = damaged / "pixels" / "shard-00000.npy"
        shard.write_bytes(shard.read_bytes()[:-100])
        with pytest.raises(DataError, match="damaged"):
            open_dataset(damaged).split("train")
        description = json.loads((damaged / "dataset.json").read_text())
        del description["checksum"], description["schema"]
        (damaged / "dataset.json").write_bytes(seal(description, 99))
        with pytest.raises(
            DataError, match=f"schema 99, and this version reads {SCHEMA}.*prepare.py --raw"
        ):
            open_dataset(damaged)

    def test_no_data_set(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="ray_jobs/prepare.py --raw"):
            open_dataset(tmp_path)

    def test_an_unreadable_file_is_a_row(self, tmp_path: Path) -> None:
        raw_file = RawFile(root=str(tmp_path), path="Flying Birds/gone.jpg", class_name=CLASSES[0])
        assert scan_file(raw_file, Preprocessing()).problem == "unreadable"


def test_folders_are_matched_tolerantly_and_loops_of_links_end(tmp_path: Path) -> None:
    for folder in ("flying_birds", "LargeQuadCopters", "small quadcopter", "Winged-Drones", "junk"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a, b.jpg").touch()
    (tmp_path / "flying_birds" / "loop").symlink_to(tmp_path, target_is_directory=True)
    listing = list_raw_files([tmp_path])
    class_of = {file.path: file.class_name for file in listing.files}
    assert class_of.pop("flying_birds/loop") == CLASSES[0]  # The scan rejects it.
    assert sorted(class_of.values()) == sorted(CLASSES)
    assert [(item.folder, item.num_files) for item in listing.left_out] == [("junk", 1)]


@pytest.mark.real
def test_real_images(real_images: Path, tmp_path: Path) -> None:
    planned = plan_dataset([real_images], SMALL, map_sequentially)
    assert planned.steps.loc["found"].tolist() == [201, 201, 201, 201, 804]
    assert planned.steps.loc[WITHIN].tolist() == [0, -1, -1, -6, -8]
    assert planned.splits.loc["test", "total"] == pytest.approx(0.15 * 796, abs=4)
    # Checked by eye: every group holds one photograph in several crops or encodings, one of
    # them mirrored.
    assert len(planned.near_group_sizes) == 17
