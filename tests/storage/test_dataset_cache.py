"""Data sets at other locations, and their copies on this machine."""

import shutil
from pathlib import Path

import pytest

from drone.data.dataset import Dataset
from drone.errors import DataError
from drone.storage.dataset_cache import open_at
from tests.data.preparing import rewrite


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRONE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "datasets"


def test_a_local_folder_is_not_copied(dataset: Dataset, cache: Path) -> None:
    assert open_at(str(dataset.folder)).folder == dataset.folder
    assert open_at(str(dataset.folder), dataset.fingerprint).folder == dataset.folder
    assert not cache.exists()
    with pytest.raises(
        DataError, match=r"the job uses 0{12}\. Remove it there, or copy the right one"
    ):
        open_at(str(dataset.folder), "0" * 64)


def test_a_remote_data_set_is_copied_once(dataset: Dataset, cache: Path, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    shutil.copytree(dataset.folder, bucket)
    messages: list[str] = []
    copied = open_at(bucket.as_uri(), notify=messages.append)
    assert copied.folder == cache / dataset.fingerprint
    assert copied.split("train").paths == dataset.split("train").paths
    assert "Copying the data set" in messages[0]
    shutil.rmtree(bucket)
    assert open_at(bucket.as_uri(), dataset.fingerprint, messages.append).folder == copied.folder
    assert len(messages) == 1


def test_a_copy_that_was_cut_short_is_copied_again(
    dataset: Dataset, cache: Path, tmp_path: Path
) -> None:
    unfinished = cache / f"{dataset.fingerprint}.arriving"
    unfinished.mkdir(parents=True)
    (unfinished / "dataset.json").write_text("{")
    copied = open_at(dataset.folder.as_uri(), dataset.fingerprint)
    assert copied.split("test").paths == dataset.split("test").paths


def test_another_data_set_than_the_job_started_on_is_refused(
    dataset: Dataset, tmp_path: Path
) -> None:
    bucket = tmp_path / "bucket"
    shutil.copytree(dataset.folder, bucket)
    rewrite(bucket, fingerprint="1" * 64)
    with pytest.raises(
        DataError, match="now holds the data set 1{12}, but the job started on 2{12}"
    ):
        open_at(bucket.as_uri(), "2" * 64)
    with pytest.raises(DataError, match="not a prepared data set, or cannot be read"):
        open_at((tmp_path / "nothing").as_uri())


def test_a_copy_is_refreshed_when_its_bins_have_been_packed(
    mixed: Dataset, cache: Path, tmp_path: Path
) -> None:
    bucket = tmp_path / "bucket"
    shutil.copytree(mixed.folder, bucket)
    rewrite(bucket, bins=False)
    plain = open_at(bucket.as_uri())
    assert not plain.has_bins
    with pytest.raises(DataError, match=rf"{bucket.as_uri()} has its images at 224 px only"):
        open_at(bucket.as_uri(), plain.fingerprint, at_bins=True)
    rewrite(bucket, bins=True)
    binned = open_at(bucket.as_uri(), plain.fingerprint, at_bins=True)
    assert set(binned.split("train").sides_N) == {224, 448, 672, 896}
    assert binned.folder == cache / plain.fingerprint
