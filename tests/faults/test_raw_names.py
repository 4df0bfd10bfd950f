"""Raw folders as people have them: names of any bytes, deep folders, damaged archives."""

import io
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from drone.data.dataset import open_dataset
from drone.data.prepare.plan import PrepareSettings, map_sequentially, plan_dataset
from drone.data.prepare.roots import escaped_name, open_root
from drone.data.prepare.write import write_dataset
from drone.errors import DataError
from drone.serving.preprocess import Preprocessing

pytestmark = pytest.mark.slow

SETTINGS = PrepareSettings(preprocessing=Preprocessing(side_px=32))


def an_image(raw: Path) -> Path:
    """A file that is kept whatever else is in the folder."""
    return next(path for path in sorted((raw / "Flying Birds").iterdir()) if path.suffix == ".png")


NAMES = [b"caf\xe9.png", b"\xff\xfe.png", b"a\nb.png", b"a\x1b[2Jb.png", b"\\xff.png", b"[x].png"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_is_a_row(raw: Path, tmp_path: Path, name: bytes) -> None:
    source = an_image(raw)
    shutil.move(os.fsencode(source), os.fsencode(source.parent) + b"/" + name)
    shown = "Flying Birds/" + escaped_name(os.fsdecode(name))
    assert shown.encode() and (b"\\x" in name or "\\x5c" not in shown)
    out = tmp_path / "set"
    write_dataset(plan_dataset([raw], SETTINGS, map_sequentially), out, map_sequentially)
    manifest = open_dataset(out).manifest.set_index("path")
    assert manifest.loc[shown, "md5"] and manifest.loc[shown, "reason"] != "unreadable"


def test_two_names_that_look_alike_stay_apart(raw: Path) -> None:
    source = an_image(raw)
    folder = os.fsencode(source.parent)
    for name, content in ((b"\xff.png", b"first"), (b"\\xff.png", b"second")):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(content)
    root = open_root(str(raw))
    paths = [entry.path for entry in root.entries("Flying Birds") if entry.size_bytes in (5, 6)]
    assert len(paths) == len(set(paths)) == 2
    assert {root.read(path, 100) for path in paths} == {b"first", b"second"}


def test_a_raw_folder_and_a_class_folder_of_any_name(raw: Path, tmp_path: Path) -> None:
    strange = tmp_path / os.fsdecode(b"raw\xe9")
    raw.rename(strange)
    (strange / "Flying Birds").rename(strange / os.fsdecode(b"flying_birds"))
    plan = plan_dataset([strange], SETTINGS, map_sequentially)
    write_dataset(plan, tmp_path / "set", map_sequentially)
    assert set(open_dataset(tmp_path / "set").manifest["root"]) == {f"{tmp_path}/raw\\xe9"}


def test_folders_that_are_nested_very_deeply(raw: Path) -> None:
    source = an_image(raw)
    here = Path.cwd()
    try:
        os.chdir(source.parent)
        for _ in range(1500):
            Path("a").mkdir()
            os.chdir("a")
        Path("deep.png").write_bytes(source.read_bytes())
    finally:
        os.chdir(here)
    plan = plan_dataset([raw], SETTINGS, map_sequentially)
    (row,) = plan.manifest[plan.manifest["path"].str.endswith("deep.png")].itertuples()
    assert row.reason != "unreadable"
    # Python's own rmtree recurses, and pytest would fail to tidy up.
    subprocess.run(["rm", "-rf", str(raw)], check=True)


def archive_of(raw: Path, compression: int) -> bytearray:
    """The raw folder as a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for file in sorted(raw.rglob("*.*")):
            archive.write(file, file.relative_to(raw))
    return bytearray(buffer.getvalue())


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
@pytest.mark.parametrize("seed", range(2))
def test_damaged_entries_are_rows_with_a_reason(
    raw: Path, tmp_path: Path, compression: int, seed: int
) -> None:
    content = archive_of(raw, compression)
    # In the first entry's data, past its header of about 70 bytes.
    for offset in range(80 + 40 * seed, 110 + 40 * seed):
        content[offset] ^= 0x55
    file = tmp_path / "raw.zip"
    file.write_bytes(content)
    plan = plan_dataset([file], SETTINGS, map_sequentially)
    first = sorted(raw.rglob("*.*"))[0].relative_to(raw).as_posix()
    (row,) = plan.manifest[plan.manifest["path"] == first].itertuples()
    assert not row.kept and row.reason in ("unreadable", "non-media", "undecodable")


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_directory_is_a_clear_error_or_no_loss(
    raw: Path, tmp_path: Path, seed: int
) -> None:
    content = archive_of(raw, zipfile.ZIP_DEFLATED)
    start = content.rindex(b"PK\x01\x02", 0, len(content) - 200)
    content[start + seed * 3] ^= 0xFF
    content[-22 + seed] ^= 0xFF
    file = tmp_path / "raw.zip"
    file.write_bytes(content)
    try:
        plan_dataset([file], SETTINGS, map_sequentially)
    except DataError as error:
        assert "raw.zip" in str(error)


def test_two_entries_of_one_name_are_two_rows(raw: Path, tmp_path: Path) -> None:
    source = an_image(raw)
    path = source.relative_to(raw).as_posix()
    file = tmp_path / "raw.zip"
    file.write_bytes(archive_of(raw, zipfile.ZIP_DEFLATED))
    other = sorted((raw / "Winged Drones").glob("*.png"))[0]
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(path, other.read_bytes())
    manifest = plan_dataset([file], SETTINGS, map_sequentially).manifest.set_index("path")
    assert {path, f"{path}#2"} <= set(manifest.index)
    assert manifest.loc[path, "md5"] != manifest.loc[f"{path}#2", "md5"]


def test_content_that_changes_behind_an_old_time_is_seen(raw: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    file = an_image(raw)
    plan_dataset([raw], SETTINGS, map_sequentially, cache_folder=cache)
    times = file.stat()
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = plan_dataset([raw], SETTINGS, map_sequentially, cache_folder=cache)
    fresh = plan_dataset([raw], SETTINGS, map_sequentially)
    assert list(after.manifest["md5"]) == list(fresh.manifest["md5"])


def test_rescan_reads_every_file_again(raw: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    read: list[int] = []

    def mapper(function, rows, label):  # type: ignore[no-untyped-def]
        read.append(len(rows))
        return map_sequentially(function, rows, label)

    for rescan in (False, False, True):
        plan = plan_dataset([raw], SETTINGS, mapper, cache_folder=cache, rescan=rescan)
    assert read == [len(plan.manifest)] * 2
