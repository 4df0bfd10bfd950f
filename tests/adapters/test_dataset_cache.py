"""Data sets that are elsewhere."""

import json
import shutil
from pathlib import Path

import pytest

from drone.adapters.dataset_cache import open_at
from drone.data.dataset import Dataset
from drone.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRONE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "datasets"


def test_a_folder_is_opened_where_it_is(dataset: Dataset, cache: Path) -> None:
    assert open_at(str(dataset.folder)).folder == dataset.folder
    assert open_at(str(dataset.folder), dataset.fingerprint).folder == dataset.folder
    assert not cache.exists()
    with pytest.raises(DataError, match="remove it there or copy the right one"):
        open_at(str(dataset.folder), "0" * 64)


def test_what_is_elsewhere_is_copied_once(dataset: Dataset, cache: Path, tmp_path: Path) -> None:
    place = tmp_path / "bucket"
    shutil.copytree(dataset.folder, place)
    said: list[str] = []
    copied = open_at(place.as_uri(), say=said.append)
    assert copied.folder == cache / dataset.fingerprint
    assert copied.split("train").paths == dataset.split("train").paths
    assert "Copying the data set" in said[0]
    shutil.rmtree(place)
    assert open_at(place.as_uri(), dataset.fingerprint, said.append).folder == copied.folder
    assert len(said) == 1


def test_a_copy_that_was_cut_short_is_made_anew(
    dataset: Dataset, cache: Path, tmp_path: Path
) -> None:
    unfinished = cache / f"{dataset.fingerprint}.arriving"
    unfinished.mkdir(parents=True)
    (unfinished / "dataset.json").write_text("{")
    copied = open_at(dataset.folder.as_uri(), dataset.fingerprint)
    assert copied.split("test").paths == dataset.split("test").paths


def test_another_data_set_than_the_job_began_on(dataset: Dataset, tmp_path: Path) -> None:
    place = tmp_path / "bucket"
    shutil.copytree(dataset.folder, place)
    description = json.loads((place / "dataset.json").read_text())
    (place / "dataset.json").write_text(json.dumps({**description, "fingerprint": "1" * 64}))
    with pytest.raises(DataError, match=f"is the data set 111111111111 now.*{'2' * 12}"):
        open_at(place.as_uri(), "2" * 64)
    with pytest.raises(DataError, match="not a prepared data set, or cannot be read"):
        open_at((tmp_path / "nothing").as_uri())


def test_bins_that_were_packed_after_the_copy(mixed: Dataset, cache: Path, tmp_path: Path) -> None:
    place = tmp_path / "bucket"
    shutil.copytree(mixed.folder, place)
    description = json.loads((place / "dataset.json").read_text())
    (place / "dataset.json").write_text(json.dumps({**description, "bins": False}))
    plain = open_at(place.as_uri())
    assert not plain.has_bins
    with pytest.raises(DataError, match=rf"{place.as_uri()} has its pictures at 224 px only"):
        open_at(place.as_uri(), plain.fingerprint, at_bins=True)
    (place / "dataset.json").write_text(json.dumps(description))
    binned = open_at(place.as_uri(), plain.fingerprint, at_bins=True)
    assert set(binned.split("train").sides_N) == {224, 448, 672, 896}
    assert binned.folder == cache / plain.fingerprint
