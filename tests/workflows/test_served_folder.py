"""The folder of labelled served images: whole files, each with its line, whatever happens."""

import datetime
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from drone.files import write_whole
from drone.labels import CLASSES, NONE
from drone.serving.keeping import KeepSettings, select, write_pair
from drone.storage.kept_images import KeptImages, StoredImage
from drone.workflows import served_folder
from drone.workflows.served_images import first_by_md5

CONTENTS = [f"image {number}".encode() for number in range(3)]
MODEL = {"name": "無人機" * 60, "version": "3"}


def serve(folder: Path, *contents: bytes) -> KeptImages:
    """Returns a store with images, each served a day after the one before."""
    store = KeptImages(str(folder / "store"))
    for number, content in enumerate(contents):
        when = datetime.datetime(2026, 11, 20 + number, tzinfo=datetime.UTC)
        kept = select(KeepSettings(), content, {"label": NONE, "unsure": True}, MODEL, when)
        assert kept is not None
        write_pair(store, kept)
    return store


def labelled(store: KeptImages, label: str = CLASSES[0]) -> list[tuple[StoredImage, str]]:
    return [(image, label) for image in store.images()]


def contents_of(folder: Path) -> set[bytes]:
    files = served_folder.files_by_sha256(folder)
    assert files.keys() <= served_folder.recorded(folder).keys()
    return {file.read_bytes() for file in files.values()}


class Killed(BaseException):
    """What nothing handles."""


def killed_at(moment: int) -> Callable[..., None]:
    """Returns `write_whole` for a process that is killed before its write of that number."""
    writes = iter(range(moment))

    def write(*args: object) -> None:
        if next(writes, None) is None:
            raise Killed
        write_whole(*args)  # type: ignore[arg-type]

    return write


@pytest.mark.parametrize("moment", range(4))
def test_an_image_has_its_line_whenever_the_process_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    store, folder = serve(tmp_path, *CONTENTS), tmp_path / "set-served"
    images = labelled(store)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(served_folder, "write_whole", killed_at(moment))
        served_folder.take(images, store, folder)
    done = contents_of(folder)
    assert len(done) == max(0, moment - 1)
    # What was copied may be gone from the store; the others come with the next run.
    for file in (tmp_path / "store").rglob("*.img"):
        if file.read_bytes() in done:
            file.unlink()
    outcome = served_folder.take(images, store, folder)
    assert contents_of(folder) == set(CONTENTS) and not outcome.gone
    lines = (folder / "provenance.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 3 and all((folder / json.loads(line)["path"]).is_file() for line in lines)
    assert served_folder.take(images, None, folder) == served_folder.Outcome()


def test_images_that_are_gone_or_damaged_are_left_out(tmp_path: Path) -> None:
    store, folder = serve(tmp_path, *CONTENTS), tmp_path / "set-served"
    images = labelled(store)
    gone, short, whole = (image.path for image, _ in images)
    (tmp_path / "store" / gone).unlink()
    (tmp_path / "store" / short).write_bytes(CONTENTS[1][:4])
    outcome = served_folder.take(images, store, folder)
    assert (outcome.num_new, outcome.gone, outcome.damaged) == (1, [gone], [short])
    assert contents_of(folder) == {CONTENTS[2]}
    assert [image.day for image in served_folder.recorded(folder).values()] == [whole[:10]]


def test_an_image_of_no_class_moves_with_its_line(tmp_path: Path) -> None:
    store, folder = serve(tmp_path, *CONTENTS), tmp_path / "set-served"
    images = labelled(store)
    served_folder.take(images, store, folder)
    (folder / "provenance.jsonl").open("ab").write(b'{"note": "of another program"}')
    served_folder.take([(images[0][0], NONE), *images[1:]], None, folder)
    paths = [image.path for image in served_folder.recorded(folder).values()]
    assert sum(path.startswith(f"{NONE}/served/") for path in paths) == 1 and len(paths) == 3
    assert all((folder / path).is_file() for path in paths)
    assert "of another program" in (folder / "provenance.jsonl").read_text("utf-8")


def test_of_two_images_with_one_md5_the_first_keeps_its_label(tmp_path: Path) -> None:
    store = serve(tmp_path, *CONTENTS)
    records = sorted((tmp_path / "store").rglob("*.json"))
    first, second = (json.loads(record.read_text("utf-8")) for record in records[:2])
    records[1].write_text(json.dumps({**second, "md5": first["md5"]}))
    warnings: list[str] = []
    images = first_by_md5(store.images(), warnings.append)
    assert images[first["md5"]].sha256 == hashlib.sha256(CONTENTS[0]).hexdigest()
    (warning,) = warnings
    assert second["sha256"] in warning and f"its md5, {first['md5']}, is also that of" in warning
