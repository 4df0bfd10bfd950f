"""Raw pictures in folders, archives and object storage: the same files, the same verdicts."""

import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image, ImageEnhance, ImageFilter

from drone.adapters import raw_roots
from drone.data.prepare import Plan, PrepareSettings, map_here, plan
from drone.data.roots import open_root
from drone.data.scan import list_sources, scan_file
from drone.data.scan_cache import ScanCache
from drone.errors import DataError
from drone.labels import CLASSES
from drone.serving.preprocess import Preprocessing
from tests.conftest import MadeUp


def what_was_seen(planned: Plan) -> list[list[object]]:
    """The manifest without where the files lie."""
    return planned.frame.drop(columns="root").to_numpy().tolist()


@pytest.fixture(scope="module")
def from_folder(made_up: MadeUp) -> Plan:
    return plan([made_up.folder], PrepareSettings(), map_here)


@pytest.mark.parametrize("wrapper", ["", "pictures of 2020/"])
def test_an_archive_is_read_as_its_folder_would_be(
    made_up: MadeUp, from_folder: Plan, tmp_path: Path, wrapper: str
) -> None:
    file = tmp_path / "raw.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for picture in sorted(made_up.folder.rglob("*")):
            if picture.is_file():
                archive.write(picture, f"{wrapper}{picture.relative_to(made_up.folder)}")
        archive.writestr(f"__MACOSX/{wrapper}Flying Birds/._a.jpg", b"resources")
    planned = plan([file], PrepareSettings(), map_here)
    assert what_was_seen(planned) == what_was_seen(from_folder)
    assert planned.fingerprint == from_folder.fingerprint
    assert not planned.unknown_folders
    assert set(planned.frame["root"]) == {str(file / wrapper).rstrip("/") if wrapper else str(file)}


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
    listing = list_sources([file])
    records = [scan_file(source, Preprocessing()) for source in listing.sources]
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
        Bucket="pictures", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    yield f"s3://pictures/raw?scheme=http&endpoint_override={host}:{port}&region=eu-central-1"
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def test_a_bucket_is_read_as_a_folder_would_be(
    made_up: MadeUp, from_folder: Plan, bucket: str
) -> None:
    endpoint = bucket.split("endpoint_override=")[1].split("&")[0]
    store = boto3.client("s3", endpoint_url=f"http://{endpoint}")
    for file in made_up.folder.rglob("*"):
        if file.is_file():
            store.upload_file(str(file), "pictures", f"raw/{file.relative_to(made_up.folder)}")
    planned = plan([bucket], PrepareSettings(), map_here, opener=raw_roots.open_root)
    assert what_was_seen(planned) == what_was_seen(from_folder)
    assert planned.fingerprint == from_folder.fingerprint
    with pytest.raises(DataError, match="There is no folder"):
        raw_roots.open_root(bucket.replace("/raw", "/nothing"))


def test_several_roots_are_one_heap(made_up: MadeUp, from_folder: Plan, tmp_path: Path) -> None:
    more = tmp_path / "more"
    shutil.copytree(made_up.folder / "Winged Drones", more / "winged_drones")
    (more / "cats").mkdir()
    planned = plan([made_up.folder, more], PrepareSettings(), map_here)
    before, now = from_folder.steps, planned.steps
    added = len(list((more / "winged_drones").iterdir()))
    assert now.loc["found", "total"] == before.loc["found", "total"] + added
    assert now.loc["kept"].equals(before.loc["kept"])
    assert planned.fingerprint == from_folder.fingerprint
    assert planned.unknown_folders == (f"{more}/cats",)
    with pytest.raises(DataError, match="named twice"):
        plan([more, more], PrepareSettings(), map_here)


def test_what_is_no_file_is_a_row(tmp_path: Path) -> None:
    folder = tmp_path / "Flying Birds"
    folder.mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "circle.jpg").symlink_to(folder / "circle.jpg")
    (folder / "nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    listing = list_sources([tmp_path], all_classes=False)
    found = {source.path: scan_file(source, Preprocessing()).problem for source in listing.sources}
    assert set(found.values()) == {"unreadable"} and len(found) == 3


def test_one_base_name_and_two_cases_of_an_extension_are_different_files(
    made_up: MadeUp, tmp_path: Path
) -> None:
    pictures = sorted(made_up.folder.glob("Winged Drones/winged_*.jpg"))[:4]
    names = ("Flying Birds/a.jpg", "Flying Birds/a.JPG", "Flying Birds/in/a.jpg")
    for picture, name in zip(pictures, (*names, "Winged Drones/a.jpg"), strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, tmp_path / name)
    listing = list_sources([tmp_path], all_classes=False)
    paths = [source.path for source in listing.sources]
    assert sorted(paths) == sorted((*names, "Winged Drones/a.jpg"))
    records = [scan_file(source, Preprocessing()) for source in listing.sources]
    assert len({record.md5 for record in records}) == 4


def test_a_file_that_is_too_long_is_not_read_whole(tmp_path: Path) -> None:
    (tmp_path / "Flying Birds").mkdir()
    file = tmp_path / "Flying Birds" / "long.jpg"
    with file.open("wb") as stream:
        stream.truncate(2**33)  # Eight GiB of nothing.
    (source,) = list_sources([tmp_path], all_classes=False).sources
    record = scan_file(source, Preprocessing(max_bytes=2**20))
    assert (record.problem, record.size_bytes) == ("too-large", 2**33)


def test_a_file_is_read_again_when_it_has_changed(made_up: MadeUp, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(made_up.folder, raw)
    looked: list[str] = []

    def mapper(function, rows, label):  # type: ignore[no-untyped-def]
        looked.extend(row["path"] for row in rows)
        return map_here(function, rows, label)

    first = plan([raw], PrepareSettings(), mapper, cache=tmp_path / "cache")
    assert len(looked) == len(made_up.truth.files)
    looked.clear()
    again = plan([raw], PrepareSettings(), mapper, cache=tmp_path / "cache")
    assert looked == [] and again.frame.equals(first.frame)
    changed = sorted(raw.glob("Flying Birds/*.jpg"))[0]
    changed.write_bytes(b"another content")
    shutil.copy(changed, changed.with_name("new.txt"))
    third = plan([raw], PrepareSettings(), mapper, cache=tmp_path / "cache")
    assert sorted(looked) == sorted(
        file.relative_to(raw).as_posix() for file in (changed, changed.with_name("new.txt"))
    )
    reasons = third.frame.set_index("path")["reason"]
    assert reasons[f"Flying Birds/{changed.name}"] == "non-media"
    # Other limits are another cache; a damaged one costs a scan.
    settings = Preprocessing(min_side_px=99)
    assert not ScanCache(tmp_path / "cache", settings).known(list_sources([raw]).sources)
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(b"damaged")
    looked.clear()
    assert plan([raw], PrepareSettings(), mapper, cache=tmp_path / "cache").frame.equals(
        third.frame
    )
    assert len(looked) == len(made_up.truth.files) + 1


def test_what_a_look_finds_out(made_up: MadeUp) -> None:
    records = {
        source.path: scan_file(source, Preprocessing())
        for source in list_sources([made_up.folder]).sources
    }
    turned = [path for path, kind in made_up.truth.odd.items() if kind == "EXIF rotation"]
    assert turned and all(records[path].orientation == 6 for path in turned)
    assert not any(records[path].orientation for path in records if path not in turned)
    for path, record in records.items():
        assert (record.problem == "") == (path not in made_up.truth.broken)
        assert 0 <= record.brightness <= 1 and record.sharpness >= 0


def test_blur_and_light_are_measured(tmp_path: Path, made_up: MadeUp) -> None:
    folder = tmp_path / "Flying Birds"
    folder.mkdir()
    original = Image.open(sorted(made_up.folder.glob("Flying Birds/flying_000?.jpg"))[1])
    original.save(folder / "a.png")
    original.filter(ImageFilter.GaussianBlur(original.width / 60)).save(folder / "blurred.png")
    ImageEnhance.Brightness(original).enhance(0.3).save(folder / "dark.png")
    seen = {
        Path(source.path).stem: scan_file(source, Preprocessing())
        for source in list_sources([tmp_path], all_classes=False).sources
    }
    assert seen["blurred"].sharpness < seen["a"].sharpness / 5
    assert seen["dark"].brightness == pytest.approx(0.3 * seen["a"].brightness, abs=0.02)
