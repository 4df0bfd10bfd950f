"""Raw folders as people have them: whatever is left out is listed."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drone.data.prepare.listing import Listing, list_raw_files, split_of_root
from drone.data.prepare.plan import PreparePlan, PrepareSettings, map_sequentially, plan_dataset
from drone.errors import ConfigError, DataError
from drone.evaluation.batch_inference import no_progress
from drone.evaluation.unseen import load_unseen
from drone.labels import CLASSES
from drone.serving.preprocess import Preprocessing
from drone.synth.drawing import draw
from tests.conftest import RunJob


def touch(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()


def draw_images(folder: Path, count: int, seed: int) -> None:
    """Draws images of every class."""
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            draw(name, 120, 90, rng).save(folder / name / f"{number}.png")


def left_out(listing: Listing) -> dict[tuple[str, str], int]:
    """Number of files by folder and reason."""
    return {(item.folder, item.reason): item.num_files for item in listing.left_out}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    touch(folder, *(f"{name}/{number}.jpg" for name in CLASSES for number in range(3)))
    return folder


class TestLinks:
    def test_a_linked_folder_is_read(self, raw: Path, tmp_path: Path) -> None:
        touch(tmp_path / "elsewhere", "a.jpg", "deep/b.jpg")
        (raw / "Flying Birds" / "linked").symlink_to(tmp_path / "elsewhere")
        paths = [file.path for file in list_raw_files([raw]).files]
        assert "Flying Birds/linked/a.jpg" in paths
        assert "Flying Birds/linked/deep/b.jpg" in paths
        assert len(paths) == 14

    def test_a_linked_class_folder_is_read(self, raw: Path, tmp_path: Path) -> None:
        (raw / "Winged Drones").rename(tmp_path / "elsewhere")
        (raw / "Winged Drones").symlink_to(tmp_path / "elsewhere")
        assert len(list_raw_files([raw]).files) == 12

    def test_a_folder_that_is_reached_twice_is_listed_under_its_own_name(self, raw: Path) -> None:
        touch(raw / "Flying Birds", "nest/a.jpg")
        (raw / "Flying Birds" / "first").symlink_to(raw / "Flying Birds" / "nest")
        paths = [file.path for file in list_raw_files([raw]).files]
        assert len(paths) == 13 and "Flying Birds/nest/a.jpg" in paths

    def test_links_that_lead_back_end(self, raw: Path) -> None:
        birds = raw / "Flying Birds"
        touch(birds, "a/x.jpg", "b/y.jpg")
        (birds / "a" / "to b").symlink_to(birds / "b")
        (birds / "b" / "to a").symlink_to(birds / "a")
        (birds / "b" / "up").symlink_to(birds)
        assert len(list_raw_files([raw]).files) == 14
        # What lies above would be read as birds, so this link is a row that the scan rejects.
        (birds / "root").symlink_to(raw)
        paths = [file.path for file in list_raw_files([raw]).files]
        assert len(paths) == 15 and "Flying Birds/root" in paths


@pytest.mark.parametrize("is_archive", [False, True])
def test_hidden_folders_are_left_out_and_counted(raw: Path, is_archive: bool) -> None:
    touch(raw, "Flying Birds/.thumbnails/0.jpg", "Flying Birds/.thumbnails/deep/1.jpg")
    touch(raw, "Winged Drones/x/@eaDir/0.jpg", ".ipynb_checkpoints/a.ipynb", ".git/b", ".git/c/d")
    touch(raw, "cats/a.jpg", "cats/b/c.jpg", "README.md", "beside.PNG")
    source = raw
    if is_archive:
        source = raw.with_suffix(".zip")
        with zipfile.ZipFile(source, "w") as archive:
            for file in raw.rglob("*"):
                archive.write(file, file.relative_to(raw))
    listing = list_raw_files([source])
    assert len(listing.files) == 12
    assert left_out(listing) == {
        ("Flying Birds/.thumbnails", "hidden"): 2,
        ("Winged Drones/x/@eaDir", "hidden"): 1,
        (".ipynb_checkpoints", "hidden"): 1,
        (".git", "hidden"): 2,
        ("cats", "no class"): 2,
        ("", "no class folder"): 1,
    }


def test_no_class_folder(tmp_path: Path) -> None:
    touch(tmp_path, "cats/a.jpg", "b.jpg")
    with pytest.raises(DataError, match=r"matches a class.*Folders there: cats"):
        list_raw_files([tmp_path])


class TestSplitFolders:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        """train, val and test with six images a class each; one of train is in test too."""
        folder = tmp_path / "tree"
        for number, split in enumerate(("train", "val", "test")):
            draw_images(folder / split, 6, number)
        image = folder / "train" / CLASSES[0] / "0.png"
        shutil.copy(image, folder / "test" / CLASSES[0] / "leaked.png")
        return folder

    def test_they_are_roots(self, tree: Path) -> None:
        touch(tree, "extra/a.jpg")
        listing = list_raw_files([tree])
        assert {file.root for file in listing.files} == {
            f"{tree}/{split}" for split in ("train", "val", "test")
        }
        assert left_out(listing) == {("extra", "no class"): 1}

    @pytest.mark.parametrize("name", ["images", "images/v2"])
    def test_a_folder_around_them(self, tree: Path, tmp_path: Path, name: str) -> None:
        target = tmp_path / "around" / name
        target.parent.mkdir(parents=True)
        tree.rename(target)
        if name == "images":
            assert len(list_raw_files([tmp_path / "around"]).files) == 4 * 18 + 1
        else:  # Two folders above are one too many: no guess goes that far.
            with pytest.raises(DataError, match="matches a class"):
                list_raw_files([tmp_path / "around"])

    def test_splits_are_made_anew(self, tree: Path) -> None:
        planned = self.plan(tree)
        assert planned.straddling.empty
        assert (planned.manifest.groupby("group")["split"].nunique() == 1).all()

    def test_splits_are_kept(self, tree: Path) -> None:
        planned = self.plan(tree, keep_split=True)
        kept = planned.manifest[planned.manifest["kept"]]
        assert (kept["split"] == kept["root"].map(split_of_root)).all()
        assert planned.splits["total"].sum() == 4 * 18

    def test_near_duplicates_across_kept_splits_are_reported(
        self, tree: Path, tmp_path: Path, call_job: RunJob
    ) -> None:
        (tree / "test" / CLASSES[0] / "leaked.png").unlink()
        source = tree / "train" / CLASSES[0] / "0.png"
        with Image.open(source) as image:
            image.save(tree / "test" / CLASSES[0] / "leaked.jpg", quality=60)
        straddling = self.plan(tree, keep_split=True).straddling
        assert straddling.loc[CLASSES[0]].to_dict() == {"test": 1, "train": 1}
        done = call_job("prepare", "--raw", tree, "--out", "d", "--dry-run", "--keep-split")
        assert done.code == 0 and "2 images have near duplicates in another" in done.out
        assert not (tmp_path / "d").exists()

    def test_a_split_without_a_class(self, tree: Path) -> None:
        shutil.rmtree(tree / "val" / CLASSES[1])
        with pytest.raises(DataError, match=rf"no image of {CLASSES[1]} into .*validation"):
            self.plan(tree, keep_split=True)

    def test_nothing_to_keep(self, tree: Path) -> None:
        with pytest.raises(ConfigError, match="--keep-split"):
            self.plan((tree / "train").rename(tree / "plain"), keep_split=True)

    def plan(self, folder: Path, *, keep_split: bool = False) -> PreparePlan:
        settings = PrepareSettings(
            keep_split=keep_split, preprocessing=Preprocessing(side_px=32), policy="first"
        )
        return plan_dataset([folder], settings, map_sequentially)


@pytest.mark.parametrize(
    ("root", "split"),
    [
        ("raw/train", "train"),
        ("raw/Val", "validation"),
        ("test.zip", "test"),
        ("s3://bucket/validation?region=eu", "validation"),
        ("raw/training data", ""),
        ("raw", ""),
    ],
)
def test_splits_by_the_names_of_roots(root: str, split: str) -> None:
    assert split_of_root(root) == split


def test_what_an_evaluation_leaves_out(tmp_path: Path) -> None:
    draw_images(tmp_path, 3, 0)
    touch(tmp_path, "cats/a.jpg", "cats/b.jpg")
    settings = Preprocessing(side_px=32)
    unseen = load_unseen(tmp_path, CLASSES, settings, None, no_progress)
    assert [str(item) for item in unseen.folders_left_out] == [
        f"{tmp_path}/cats matches no class: 2 files left out."
    ]
    assert unseen.num_left_out == 2 + len(unseen.left_out)
