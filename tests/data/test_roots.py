"""Raw images in folders, archives and object storage give the same verdicts."""

import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image, ImageEnhance, ImageFilter

from drone.data.prepare.listing import LeftOut, list_raw_files
from drone.data.prepare.plan import PreparePlan, PrepareSettings, map_sequentially, plan_dataset
from drone.data.prepare.roots import open_root
from drone.data.prepare.scan import scan_file
from drone.data.prepare.scan_cache import ScanCache
from drone.errors import DataError
from drone.labels import CLASSES
from drone.serving.preprocess import Preprocessing
from drone.storage import raw_roots
from tests.conftest import MadeUp


def without_root(planned: PreparePlan) -> list[list[object]]:
    """The manifest without the locations of the files."""
    return planned.manifest.drop(columns="root").to_numpy().tolist()


@pytest.fixture(scope="module")
def from_folder(made_up: MadeUp) -> PreparePlan:
    return plan_dataset([made_up.folder], PrepareSettings(), map_sequentially)


@pytest.mark.parametrize("wrapper", ["", "images of 2020/"])
def test_an_archive_is_read_as_its_folder_would_be(
    made_up: MadeUp, from_folder: PreparePlan, tmp_path: Path, wrapper: str
) -> None:
    file = tmp_path / "raw.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for image in sorted(made_up.folder.rglob("*")):
            if image.is_file():
                archive.write(image, f"{wrapper}{image.relative_to(made_up.folder)}")
        archive.writestr(f"__MACOSX/{wrapper}Flying Birds/._a.jpg", b"resources")
    planned = plan_dataset([file], PrepareSettings(), map_sequentially)
    assert without_root(planned) == without_root(from_folder)
    assert planned.fingerprint == from_folder.fingerprint
    hidden = LeftOut(root=str(file), folder="__MACOSX", reason="hidden", num_files=1)
    assert planned.left_out == (hidden,)
    assert set(planned.manifest["root"]) == {
        str(file / wrapper).rstrip("/") if wrapper else str(file)
    }


def test_damage_in_an_archive_is_a_row(made_up: MadeUp, tmp_path: Path) -> None:
    file = tmp_path / "raw.zip"
    good = next(made_up.folder.glob("Winged Drones/winged_*.jpg")).read_bytes()
    with zipfile.ZipFile(file, "w") as archive:
        for name in CLASSES:
            archive.writestr(f"{name}/fine.jpg", good)
    content = bytearray(file.read_bytes())
    start = content.find(good) + len(good) // 2
    content[start : start + 8] = b"damaged!"
    file.write_bytes(content)
    listing = list_raw_files([file])
    records = [scan_file(raw_file, Preprocessing()) for raw_file in listing.files]
    assert [record.problem for record in records] == ["unreadable", "", "", ""]
    assert "damaged in the archive" in records[0].detail
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="neither a folder nor a zip archive"):
        open_root(str(tmp_path / "cut.zip"))


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URI of an empty bucket on a server that speaks the protocol of S3, on loopback."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict(zip(names, ("key", "secret", "eu-central-1"), strict=True)))
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    store = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    store.create_bucket(
        Bucket="images", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    yield f"s3://images/raw?scheme=http&endpoint_override={host}:{port}&region=eu-central-1"
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def test_a_bucket_is_read_as_a_folder_would_be(
    made_up: MadeUp, from_folder: PreparePlan, bucket: str
) -> None:
    endpoint = bucket.split("endpoint_override=")[1].split("&")[0]
    store = boto3.client("s3", endpoint_url=f"http://{endpoint}")
    for file in made_up.folder.rglob("*"):
        if file.is_file():
            store.upload_file(str(file), "images", f"raw/{file.relative_to(made_up.folder)}")
    planned = plan_dataset(
        [bucket], PrepareSettings(), map_sequentially, opener=raw_roots.open_root
    )
    assert without_root(planned) == without_root(from_folder)
    assert planned.fingerprint == from_folder.fingerprint
    with pytest.raises(DataError, match="There is no folder"):
        raw_roots.open_root(bucket.replace("/raw", "/nothing"))


def test_several_roots_are_one_data_set(
    made_up: MadeUp, from_folder: PreparePlan, tmp_path: Path
) -> None:
    more = tmp_path / "more"
    shutil.copytree(made_up.folder / "Winged Drones", more / "winged_drones")
    (more / "cats").mkdir()
    planned = plan_dataset([made_up.folder, more], PrepareSettings(), map_sequentially)
    before, now = from_folder.steps, planned.steps
    added = len(list((more / "winged_drones").iterdir()))
    assert now.loc["found", "total"] == before.loc["found", "total"] + added
    assert now.loc["kept"].equals(before.loc["kept"])
    assert planned.fingerprint == from_folder.fingerprint
    assert planned.left_out == (
        LeftOut(root=str(more), folder="cats", reason="no class", num_files=0),
    )
    with pytest.raises(DataError, match="named twice"):
        plan_dataset([more, more], PrepareSettings(), map_sequentially)


def test_what_is_no_regular_file_is_a_row(tmp_path: Path) -> None:
    folder = tmp_path / "Flying Birds"
    folder.mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "circle.jpg").symlink_to(folder / "circle.jpg")
    (folder / "nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    listing = list_raw_files([tmp_path], require_all_classes=False)
    problems = [scan_file(file, Preprocessing()).problem for file in listing.files]
    assert problems == ["unreadable"] * 3


def test_one_base_name_and_two_cases_of_an_extension_are_different_files(
    made_up: MadeUp, tmp_path: Path
) -> None:
    images = sorted(made_up.folder.glob("Winged Drones/winged_*.jpg"))[:4]
    names = ("Flying Birds/a.jpg", "Flying Birds/a.JPG", "Flying Birds/in/a.jpg")
    for image, name in zip(images, (*names, "Winged Drones/a.jpg"), strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / name)
    listing = list_raw_files([tmp_path], require_all_classes=False)
    paths = [file.path for file in listing.files]
    assert sorted(paths) == sorted((*names, "Winged Drones/a.jpg"))
    records = [scan_file(file, Preprocessing()) for file in listing.files]
    assert len({record.md5 for record in records}) == 4


def test_a_file_above_the_size_limit_is_not_read_whole(tmp_path: Path) -> None:
    (tmp_path / "Flying Birds").mkdir()
    file = tmp_path / "Flying Birds" / "long.jpg"
    with file.open("wb") as stream:
        stream.truncate(2**33)  # Eight GiB of nothing.
    (raw_file,) = list_raw_files([tmp_path], require_all_classes=False).files
    record = scan_file(raw_file, Preprocessing(max_bytes=2**20))
    assert (record.problem, record.size_bytes) == ("too-large", 2**33)


def test_a_file_is_read_again_when_it_has_changed(made_up: MadeUp, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(made_up.folder, raw)
    scanned: list[str] = []

    def mapper(function, rows, label):  # type: ignore[no-untyped-def]
        scanned.extend(row["path"] for row in rows)
        return map_sequentially(function, rows, label)

    first = plan_dataset([raw], PrepareSettings(), mapper, cache_folder=tmp_path / "cache")
    assert len(scanned) == len(made_up.truth.files)
    scanned.clear()
    again = plan_dataset([raw], PrepareSettings(), mapper, cache_folder=tmp_path / "cache")
    assert scanned == [] and again.manifest.equals(first.manifest)
    changed = sorted(raw.glob("Flying Birds/*.jpg"))[0]
    changed.write_bytes(b"another content")
    shutil.copy(changed, changed.with_name("new.txt"))
    third = plan_dataset([raw], PrepareSettings(), mapper, cache_folder=tmp_path / "cache")
    assert sorted(scanned) == sorted(
        file.relative_to(raw).as_posix() for file in (changed, changed.with_name("new.txt"))
    )
    reasons = third.manifest.set_index("path")["reason"]
    assert reasons[f"Flying Birds/{changed.name}"] == "non-media"
    # Other limits have another cache; a damaged one costs a scan.
    settings = Preprocessing(min_side_px=99)
    assert not ScanCache(tmp_path / "cache", settings).lookup(list_raw_files([raw]).files)
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(b"damaged")
    scanned.clear()
    fourth = plan_dataset([raw], PrepareSettings(), mapper, cache_folder=tmp_path / "cache")
    assert fourth.manifest.equals(third.manifest)
    assert len(scanned) == len(made_up.truth.files) + 1


def test_a_scan_reads_exif_and_measures_images(made_up: MadeUp) -> None:
    records = {
        file.path: scan_file(file, Preprocessing())
        for file in list_raw_files([made_up.folder]).files
    }
    turned = [path for path, kind in made_up.truth.unusual.items() if kind == "EXIF rotation"]
    assert turned and all(records[path].orientation == 6 for path in turned)
    assert not any(records[path].orientation for path in records if path not in turned)
    for path, record in records.items():
        assert (record.problem == "") == (path not in made_up.truth.broken)
        assert 0 <= record.brightness <= 1 and record.sharpness >= 0


def test_blur_and_brightness_are_measured(tmp_path: Path, made_up: MadeUp) -> None:
    folder = tmp_path / "Flying Birds"
    folder.mkdir()
    original = Image.open(sorted(made_up.folder.glob("Flying Birds/flying_000?.jpg"))[1])
    original.save(folder / "a.png")
    original.filter(ImageFilter.GaussianBlur(original.width / 60)).save(folder / "blurred.png")
    ImageEnhance.Brightness(original).enhance(0.3).save(folder / "dark.png")
    records = {
        Path(file.path).stem: scan_file(file, Preprocessing())
        for file in list_raw_files([tmp_path], require_all_classes=False).files
    }
    assert records["blurred"].sharpness < records["a"].sharpness / 5
    assert records["dark"].brightness == pytest.approx(0.3 * records["a"].brightness, abs=0.02)
