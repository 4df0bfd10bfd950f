"""Negatives: images of none of the classes, from their folders to the readers of a data set."""

import hashlib
import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from drone.config import to_dict
from drone.curation import review
from drone.curation.audit_page import write_audit
from drone.data.dataset import SPLITS, Dataset
from drone.data.prepare import ledger
from drone.data.prepare.class_names import check_classes
from drone.data.prepare.listing import Listing
from drone.data.prepare.negatives import list_all_files, list_negatives
from drone.data.prepare.plan import (
    PreparePlan,
    PrepareSettings,
    command_for,
    map_sequentially,
    plan_dataset,
)
from drone.data.prepare.verdicts import ACROSS, WITHIN
from drone.data.prepare.write import undo_last, write_dataset
from drone.errors import ConfigError, DataError
from drone.labels import CLASSES, NONE, ClassSet
from drone.serving.preprocess import to_pixels
from drone.storage import raw_roots
from tests.conftest import MadeUp
from tests.data.preparing import SMALL
from tests.data.test_decisions import by_hand_decision

KINDS = {"airplane": 12, "sky": 7, "moon": 1}
"""Number of images by kind; two more lie beside these folders."""

NUM_NEGATIVES = sum(KINDS.values()) + 2


def drawing(seed: int) -> Image.Image:
    """Coloured clouds, of which no two are near duplicates."""
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC)


def save(image: Image.Image, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return file


@pytest.fixture
def negatives(tmp_path: Path) -> Path:
    """A folder of negatives."""
    folder = tmp_path / "negatives"
    files = [folder / kind / f"{number}.png" for kind, n in KINDS.items() for number in range(n)]
    for seed, file in enumerate([*files, folder / "a.png", folder / "b.png"]):
        save(drawing(seed), file)
    (folder / "boxes.csv").write_text("file,x,y\n")
    return folder


def plan(
    made_up: MadeUp, negatives: Path, settings: PrepareSettings = SMALL, **options: object
) -> PreparePlan:
    folders = [negatives]
    return plan_dataset([made_up.folder], settings, map_sequentially, negatives=folders, **options)


def prepare(made_up: MadeUp, negatives: Path, out: Path) -> Dataset:
    planned = plan(made_up, negatives, out=out)
    return write_dataset(planned, out, map_sequentially, write_audit=write_audit)[0]


def kinds_of(listing: Listing) -> Counter[str]:
    assert {file.class_name for file in listing.files} == {NONE}
    return Counter(file.kind for file in listing.files)


class TestListing:
    def test_folders_are_kinds_and_images_beside_them_are_other(self, negatives: Path) -> None:
        save(drawing(1), negatives / ".thumbnails" / "1.png")
        listing = list_negatives([negatives], CLASSES)
        assert kinds_of(listing) == {**KINDS, "other": 2}
        assert [(item.folder, item.reason) for item in listing.left_out] == [
            (".thumbnails", "hidden")
        ]

    def test_object_storage(self, negatives: Path) -> None:
        uri = negatives.as_uri()
        listed = list_negatives([uri], CLASSES, raw_roots.open_root)
        assert kinds_of(listed) == {**KINDS, "other": 2}
        local = list_negatives([negatives], CLASSES).files
        sizes = [(file.path, file.size_bytes) for file in local]
        assert [(file.path, file.size_bytes) for file in listed.files] == sizes

    def test_an_archive_with_a_folder_around_the_kinds(self, negatives: Path) -> None:
        archive = negatives.with_suffix(".zip")
        with zipfile.ZipFile(archive, "w") as target:
            for file in sorted(negatives.glob("*/*.png")):
                target.write(file, f"mine/{file.relative_to(negatives)}")
        assert kinds_of(list_negatives([archive], CLASSES)) == KINDS

    def test_folders_of_splits_are_roots(self, negatives: Path, tmp_path: Path) -> None:
        for split in ("train", "val", "test"):
            shutil.copytree(negatives, tmp_path / "split" / split)
        listing = list_negatives([tmp_path / "split"], CLASSES)
        assert kinds_of(listing)["sky"] == 3 * KINDS["sky"]
        assert {Path(file.root).name for file in listing.files} == {"train", "val", "test"}

    def test_files_of_classes_come_first(self, made_up: MadeUp, negatives: Path) -> None:
        files = list_all_files([made_up.folder], [negatives], CLASSES).files
        assert [bool(file.kind) for file in files] == sorted(bool(file.kind) for file in files)

    def test_negatives_beside_the_class_folders(self, made_up: MadeUp, tmp_path: Path) -> None:
        raw = tmp_path / "raw"
        shutil.copytree(made_up.folder, raw)
        save(drawing(0), raw / NONE / "sky" / "a.png")
        with pytest.raises(DataError, match=r"no class folder.*--negatives '.*raw/none of these'"):
            list_all_files([raw], [], CLASSES)
        listing = list_all_files([raw], [raw / NONE], CLASSES)
        assert [file.kind for file in listing.files if file.class_name == NONE] == ["sky"]
        assert not any(item.folder == NONE for item in listing.left_out)

    def test_what_is_no_folder_of_negatives(self, negatives: Path, tmp_path: Path) -> None:
        (tmp_path / "empty" / "sky").mkdir(parents=True)
        with pytest.raises(DataError, match="empty holds no images. Name a folder of negatives"):
            list_negatives([tmp_path / "empty"], CLASSES)
        with pytest.raises(DataError, match="named twice"):
            list_negatives([negatives, negatives], CLASSES)
        (negatives / "sky").rename(negatives / "flying_birds")
        with pytest.raises(DataError, match=r"class 'Flying Birds', and --negatives.*with --raw"):
            list_negatives([negatives], CLASSES)
        folder = negatives / "flying_birds"
        for name in ("total", "all"):
            folder = folder.rename(negatives / name)
            with pytest.raises(ConfigError, match=f"is '{name}', which the tables of kinds use"):
                list_negatives([negatives], CLASSES)

    def test_the_label_is_no_class(self) -> None:
        with pytest.raises(ConfigError, match="'None of these'.*Name their folder with --negat"):
            check_classes(ClassSet.of(("birds", "None of these")))


def test_counts_add_up(made_up: MadeUp, negatives: Path) -> None:
    (negatives / "sky" / "broken.png").write_bytes(b"no image")
    shutil.copy(negatives / "airplane" / "0.png", negatives / "sky" / "copy.png")
    planned = plan(made_up, negatives)
    by_kind, steps = planned.negatives, planned.steps
    assert list(by_kind.index) == ["airplane", "moon", "other", "sky", "total"]
    assert by_kind.loc["total", steps.index].tolist() == steps[NONE].tolist()
    assert by_kind.loc["total", list(SPLITS)].tolist() == planned.splits[NONE].tolist()
    assert (by_kind.iloc[:-1].sum() == by_kind.loc["total"]).all()
    assert by_kind.loc["sky", ["found", WITHIN, "non-media", "kept"]].tolist() == [9, -1, -1, 7]
    assert (steps.drop(columns="total").sum(axis=1) == steps["total"]).all()
    assert (steps.drop(index="kept").sum() == steps.loc["kept"]).all()


def test_without_negatives_the_fingerprint_is_as_before(made_up: MadeUp) -> None:
    planned = plan_dataset([made_up.folder], SMALL, map_sequentially)
    settings = {**to_dict(SMALL), "classes": to_dict(CLASSES)}
    description = json.dumps(settings, sort_keys=True)
    kept = planned.manifest[planned.manifest["kept"]]
    rows = sorted(kept[["md5", "class_name", "split", "group"]].itertuples(index=False, name=None))
    text = description + "".join("\t".join(row) + "\n" for row in rows)
    assert planned.fingerprint == hashlib.sha256(text.encode()).hexdigest()
    assert set(planned.manifest["kind"]) == {""} and planned.labels == CLASSES.names


def test_negatives_move_no_image_of_a_class(made_up: MadeUp, negatives: Path) -> None:
    alone = plan_dataset([made_up.folder], SMALL, map_sequentially)
    # A near duplicate changes the size of its group, and might change its name.
    kept = alone.manifest[alone.manifest["kept"]]
    near = Image.open(made_up.folder / kept["path"].iloc[0]).convert("RGB")
    save(near.resize((120, 120)), negatives / "sky" / "near.png")
    both = plan(made_up, negatives)
    pd.testing.assert_frame_equal(both.manifest.iloc[: len(alone.manifest)], alone.manifest)
    assert both.fingerprint != alone.fingerprint
    added = both.manifest.set_index("path").loc["sky/near.png"]
    assert added["kept"] and added["split"] == kept["split"].iloc[0]
    assert added["group"] == kept["group"].iloc[0]
    # Another name of a kind is another data set.
    (negatives / "sky").rename(negatives / "clouds")
    assert plan(made_up, negatives).fingerprint != both.fingerprint


def test_each_kind_is_spread_over_the_splits(made_up: MadeUp, negatives: Path) -> None:
    kept = plan(made_up, negatives).manifest.query("kept")
    assert (kept.groupby("group")["split"].nunique() == 1).all()
    counts = pd.crosstab(kept["kind"], kept["split"])[list(SPLITS)]
    assert counts.loc["airplane"].tolist() == [8, 2, 2]
    assert counts.loc["sky"].tolist() == [5, 1, 1]
    assert counts.loc["moon"].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("policy", "reasons"),
    [
        ("drop-all", [ACROSS, ACROSS, WITHIN]),
        ("first", ["", ACROSS, WITHIN]),
        ("majority", [ACROSS, "", WITHIN]),
    ],
)
def test_an_image_of_a_class_among_the_negatives(
    made_up: MadeUp, negatives: Path, policy: str, reasons: list[str]
) -> None:
    settings = PrepareSettings(policy=policy, preprocessing=SMALL.preprocessing)
    alone = plan_dataset([made_up.folder], settings, map_sequentially).manifest
    kept = alone[alone["kept"] & ~alone.duplicated("content", keep=False)]["path"].iloc[0]
    for copy in ("a", "b"):
        # Its path sorts before that of the class, which comes first all the same.
        target = negatives / "Airliner" / f"{copy}{Path(kept).suffix}"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(made_up.folder / kept, target)
    manifest = plan(made_up, negatives, settings).manifest
    md5 = manifest.set_index("path").loc[kept, "md5"]
    copies = manifest[manifest["md5"] == md5]
    assert copies["path"].tolist()[0] == kept
    assert copies["reason"].tolist() == reasons
    items = review.build_items(manifest, pd.DataFrame(columns=["md5"]), ())
    item = next(item for item in items if item["md5"] == md5)
    assert item["given"] in CLASSES and len(item["places"]) == 3
    assert {item["given"] for item in items} <= set(CLASSES)


def test_a_relabelled_negative_becomes_an_image_of_a_class(
    made_up: MadeUp, negatives: Path, tmp_path: Path
) -> None:
    before = prepare(made_up, negatives, tmp_path / "set")
    row = before.manifest[before.manifest["kind"] == "airplane"].query("split == 'test'").iloc[0]
    decision = by_hand_decision(row["md5"], "relabel", CLASSES[3])
    planned = plan(made_up, negatives, out=tmp_path / "set", decisions=[decision])
    by_kind, steps = planned.negatives, planned.steps
    assert by_kind.loc["airplane", ["found", "relabelled", "kept"]].tolist() == [12, -1, 11]
    assert steps.loc["relabelled", [CLASSES[3], NONE, "total"]].tolist() == [1, -1, 0]
    after, _ = write_dataset(planned, tmp_path / "set", map_sequentially)
    assert row["path"] in after.split("test").paths
    assert row["path"] not in after.negatives("test").paths
    original, _ = after.split_before_review("test")
    assert original.paths == before.split("test").paths


def test_the_readers(made_up: MadeUp, negatives: Path, tmp_path: Path) -> None:
    with_negatives = prepare(made_up, negatives, tmp_path / "set")
    alone = plan_dataset([made_up.folder], SMALL, map_sequentially)
    plain, _ = write_dataset(alone, tmp_path / "plain", map_sequentially)
    for name in SPLITS:
        read, expected = with_negatives.split(name), plain.split(name)
        assert read.paths == expected.paths
        positions = np.arange(len(read))
        np.testing.assert_array_equal(read.gather(positions), expected.gather(positions))
        assert len(plain.negatives(name)) == 0
    pd.testing.assert_frame_equal(with_negatives.packed_rows(), plain.packed_rows())
    assert with_negatives.development().paths == plain.development().paths
    np.testing.assert_array_equal(with_negatives.fold_numbers(3), plain.fold_numbers(3))
    parts = [with_negatives.negatives(name) for name in SPLITS]
    assert sum(map(len, parts)) == NUM_NEGATIVES
    both = with_negatives.negatives("development")
    assert both.paths == parts[0].paths + parts[1].paths
    for part in (*parts, both):
        pixels = part.gather(np.arange(len(part)))
        for path, kind, image in zip(part.paths, part.kinds_N, pixels, strict=True):
            assert kind == (path.split("/")[0] if "/" in path else "other")
            expected_image = to_pixels((negatives / path).read_bytes(), SMALL.preprocessing)
            np.testing.assert_array_equal(image, expected_image)
        last = part.subset("last", np.array([len(part) - 1]))
        assert (last.paths[0], last.kinds_N[0]) == (part.paths[-1], part.kinds_N[-1])
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        with_negatives.negatives("trian")


def test_negatives_are_read_at_their_bins(mixed_raw: Path, negatives: Path, tmp_path: Path) -> None:
    save(drawing(99).resize((900, 700)), negatives / "sky" / "large.png")
    planned = plan_dataset([mixed_raw], PrepareSettings(), map_sequentially, negatives=[negatives])
    dataset, _ = write_dataset(planned, tmp_path / "set", map_sequentially, bins=True)
    sides = Counter(
        int(side) for name in SPLITS for side in dataset.at_bins().negatives(name).sides_N
    )
    assert sides == {224: NUM_NEGATIVES, 896: 1}


def test_same_input_gives_the_same_bytes(made_up: MadeUp, negatives: Path, tmp_path: Path) -> None:
    first, second = (prepare(made_up, negatives, tmp_path / name) for name in "ab")
    assert (first.folder / "tables" / "negatives.csv").is_file()
    page = (first.folder / "audit.html").read_text()
    assert "none of these: airplane" in page and 'id="negatives"' in page
    for file in sorted(first.folder.rglob("*")):
        if file.is_file() and file.name != ledger.LEDGER_FILE:  # The ledger holds the time.
            other = second.folder / file.relative_to(first.folder)
            assert file.read_bytes() == other.read_bytes(), file


def test_an_update_keeps_the_splits_and_can_be_undone(
    made_up: MadeUp, negatives: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    before = prepare(made_up, negatives, out)
    rows, kinds = before.manifest, before.negatives("train").kinds_N.tolist()
    shutil.copy(negatives / "sky" / "0.png", negatives / "airplane" / "0-copy.png")
    for number in range(8):
        save(drawing(200 + number), negatives / "kite" / f"{number}.png")
    after = prepare(made_up, negatives, out)
    assert len(after.manifest) == len(rows) + 9
    old = rows[rows["split"] != ""].set_index("md5")["split"]
    new = after.manifest[after.manifest["split"] != ""].set_index("md5")["split"]
    pd.testing.assert_series_equal(old, new[old.index])
    dropped = [line.path for line in ledger.read(out / ledger.LEDGER_FILE)]
    assert "sky/0.png" in dropped  # A copy that sorts before it is kept.
    back = undo_last(out, map_sequentially)
    assert back.fingerprint == before.fingerprint and back.manifest.equals(rows)
    assert back.negatives("train").kinds_N.tolist() == kinds


def test_splits_of_folders_are_kept(made_up: MadeUp, tmp_path: Path) -> None:
    raw, negatives = tmp_path / "raw", tmp_path / "negatives"
    for number, split in enumerate(("train", "validation", "test")):
        for index, name in enumerate(CLASSES):
            save(drawing(10 * number + index), raw / split / name / "0.png")
        save(drawing(10 * number + 7), negatives / split / "sky" / "0.png")
    save(drawing(77), negatives / "train" / "moon" / "0.png")
    settings = PrepareSettings(keep_split=True, preprocessing=SMALL.preprocessing)
    planned = plan_dataset([raw], settings, map_sequentially, negatives=[negatives])
    assert planned.negatives.loc["sky", list(SPLITS)].tolist() == [1, 1, 1]
    assert planned.negatives.loc["moon", list(SPLITS)].tolist() == [1, 0, 0]


def test_the_cache_of_scans_holds_for_both(
    made_up: MadeUp, negatives: Path, tmp_path: Path
) -> None:
    scanned = []

    def mapper(function, rows, label):  # type: ignore[no-untyped-def]
        scanned.append(len(rows))
        return map_sequentially(function, rows, label)

    cache = tmp_path / "scans"
    for kind in ("sky", "clouds"):
        planned = plan_dataset(
            [made_up.folder], SMALL, mapper, negatives=[negatives], cache_folder=cache
        )
        assert planned.negatives.loc[kind, "found"] == KINDS["sky"]
        if kind == "sky":
            (negatives / "sky").rename(negatives / "clouds")
    # Only the files of the renamed folder are read again.
    assert scanned[1] == KINDS["sky"]


def test_the_command_that_prepares_it_again_names_both(
    made_up: MadeUp, negatives: Path, tmp_path: Path
) -> None:
    dataset = prepare(made_up, negatives, tmp_path / "set")
    assert f"--raw {made_up.folder} --negatives {negatives} --out" in command_for(dataset)
