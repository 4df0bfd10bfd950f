"""Copies are equal pixels, whatever the metadata, the container and the compression."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from drone.curation import review
from drone.data.dataset import Dataset
from drone.data.prepare import ledger
from drone.data.prepare.ledger import LEDGER_FILE
from drone.data.prepare.listing import RawFile
from drone.data.prepare.plan import PrepareSettings, map_sequentially, plan_dataset
from drone.data.prepare.scan import ScanRecord, scan_file
from drone.data.prepare.verdicts import ACROSS, BY_HAND, WITHIN
from drone.data.prepare.write import write_dataset
from drone.labels import CLASSES
from drone.synth.drawing import draw
from drone.workflows.review import with_copies
from tests.data.preparing import SMALL, prepare
from tests.data.test_decisions import by_hand_decision

DRAWN = draw(CLASSES[0], 120, 90, np.random.default_rng(0))
GREY = DRAWN.convert("L")


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def exif(**tags: str | int) -> Image.Exif:
    written = Image.Exif()
    for name, value in tags.items():
        written[int(name[1:])] = value
    return written


JPEG = encoded(DRAWN, "JPEG", quality=90)


def segment(code: int, content: bytes) -> bytes:
    return b"\xff" + bytes([code]) + (len(content) + 2).to_bytes(2, "big") + content


EDITED: dict[str, tuple[bytes, bytes]] = {
    "EXIF of a JPEG": (JPEG, JPEG[:2] + segment(0xE1, exif(t305="Editor").tobytes()) + JPEG[2:]),
    "upright": (JPEG, JPEG[:2] + segment(0xE1, exif(t274=1).tobytes()) + JPEG[2:]),
    "comment and profile": (JPEG, JPEG[:2] + segment(0xFE, b"x") + segment(0xE2, b"y") + JPEG[2:]),
    "resolution": (JPEG, encoded(DRAWN, "JPEG", quality=90, dpi=(300, 300))),
    "what follows the image": (JPEG, JPEG + b"more"),
    "compression of a PNG": (
        encoded(DRAWN, "PNG", compress_level=1),
        encoded(DRAWN, "PNG", compress_level=9, exif=exif(t305="Editor")),
    ),
    "PNG and BMP": (encoded(DRAWN, "PNG"), encoded(DRAWN, "BMP")),
    "PNG and TIFF": (encoded(DRAWN, "PNG"), encoded(DRAWN, "TIFF", compression="tiff_lzw")),
    "PNG and WebP": (encoded(DRAWN, "PNG"), encoded(DRAWN, "WEBP", lossless=True)),
    "grey and colour": (encoded(GREY, "PNG"), encoded(GREY.convert("RGB"), "PNG")),
    "opaque alpha": (encoded(DRAWN, "PNG"), encoded(DRAWN.convert("RGBA"), "PNG")),
    "turned and turned back": (
        encoded(DRAWN, "PNG"),
        encoded(DRAWN.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif(t274=6)),
    ),
}
DIFFERENT: dict[str, tuple[bytes, bytes]] = {
    "quality": (JPEG, encoded(DRAWN, "JPEG", quality=70)),
    "orientation": (JPEG, JPEG[:2] + segment(0xE1, exif(t274=6).tobytes()) + JPEG[2:]),
    "one pixel": (encoded(DRAWN, "PNG"), encoded(DRAWN.crop((0, 0, 119, 90)), "PNG")),
    "shape": (encoded(DRAWN, "PNG"), encoded(DRAWN.rotate(180), "PNG")),
}  # fmt: skip


def scanned(data: bytes, folder: Path) -> ScanRecord:
    (folder / "file").write_bytes(data)
    file = RawFile(root=str(folder), path="file", class_name=CLASSES[0])
    return scan_file(file, SMALL.preprocessing)


@pytest.mark.parametrize("name", EDITED)
def test_the_content_is_that_of_the_pixels(name: str, tmp_path: Path) -> None:
    first, second = (scanned(data, tmp_path) for data in EDITED[name])
    assert first.md5 != second.md5
    assert first.content == second.content and len(first.content) == 32


@pytest.mark.parametrize("name", DIFFERENT)
def test_other_pixels_are_another_content(name: str, tmp_path: Path) -> None:
    first, second = (scanned(data, tmp_path) for data in DIFFERENT[name])
    assert first.content != second.content


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Eight drawings a class, three of the first with copies that differ in metadata."""
    folder = tmp_path / "raw"
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(8):
            image = draw(name, 120, 90, np.random.default_rng([5, number, index]))
            image.save(folder / name / f"{index}.png")
    birds = folder / CLASSES[0]
    for index, target in enumerate((birds / "9.bmp", folder / CLASSES[3] / "9.tiff")):
        Image.open(birds / f"{index}.png").save(target)
    shutil.copy(birds / "2.png", birds / "same.png")
    Image.open(birds / "2.png").save(birds / "same again.png", compress_level=1)
    return folder


def verdicts(dataset: Dataset) -> dict[str, str]:
    dropped = dataset.manifest[~dataset.manifest["kept"]]
    return dict(zip(dropped["path"], dropped["reason"], strict=True))


def test_copies_are_found_by_their_pixels(raw: Path, tmp_path: Path) -> None:
    dataset = prepare(raw, tmp_path / "set")
    birds, winged = CLASSES[0], CLASSES[3]
    assert verdicts(dataset) == {
        f"{birds}/1.png": ACROSS,
        f"{winged}/9.tiff": ACROSS,
        f"{birds}/9.bmp": WITHIN,
        f"{birds}/same.png": WITHIN,
        f"{birds}/same again.png": WITHIN,
    }
    items = review.build_items(dataset.manifest, pd.DataFrame({"md5": []}), ())
    assert items[0]["places"] == [f"{birds}/1.png", f"{winged}/9.tiff"]
    # The original project compared files.
    table = pd.read_csv(dataset.folder / "tables" / "eda_duplicate_list.csv")
    flagged = table[table["duplicate"] + table["cross_duplicate"] > 0]
    assert flagged["filename"].tolist() == [f"{birds}/same.png"]


def test_the_originals_policy_compares_files(raw: Path, tmp_path: Path) -> None:
    settings = PrepareSettings(policy="seed", preprocessing=SMALL.preprocessing)
    found = verdicts(prepare(raw, tmp_path / "set", settings))
    assert {path for path, reason in found.items() if reason in (WITHIN, ACROSS)} == {
        f"{CLASSES[0]}/same.png"
    }


@pytest.mark.parametrize("decided", ["2.png", "same again.png"])
def test_a_decision_on_one_copy_holds_for_all(raw: Path, tmp_path: Path, decided: str) -> None:
    out, birds = tmp_path / "set", CLASSES[0]
    before = prepare(raw, out).manifest.set_index("path")
    decisions = [by_hand_decision(before.loc[f"{birds}/{decided}", "md5"], "drop")]
    decisions.append(by_hand_decision(before.loc[f"{CLASSES[3]}/9.tiff", "md5"], "relabel", birds))

    def update(*new: ledger.Decision) -> pd.DataFrame:
        plan = plan_dataset([raw], SMALL, map_sequentially, out, decisions=new)
        write_dataset(plan, out, map_sequentially)
        return plan.manifest.set_index("path")

    after = update(*decisions)
    assert after.loc[f"{birds}/2.png", "reason"] == BY_HAND
    assert after.loc[f"{birds}/1.png", "kept"]
    assert after.loc[f"{CLASSES[3]}/9.tiff", "reason"] == WITHIN
    copies = after[after["content"] == after.loc[f"{birds}/2.png", "content"]]
    assert set(copies["md5"]) <= with_copies(ledger.by_hand(ledger.read(out / LEDGER_FILE)), after)
    # Also where the very file that was decided on is gone.
    (raw / birds / decided).unlink()
    left = update()
    assert not left.loc[left["content"] == copies["content"].iloc[0], "kept"].any()
    # The last decision on any of the copies counts.
    last = update(by_hand_decision(left.loc[f"{birds}/same.png", "md5"], "keep"))
    assert last.loc[last["content"] == copies["content"].iloc[0], "kept"].sum() == 1
    again = update(by_hand_decision(before.loc[f"{birds}/{decided}", "md5"], "drop"))
    assert not again.loc[again["content"] == copies["content"].iloc[0], "kept"].any()
    lines = [json.loads(line) for line in (out / LEDGER_FILE).read_text().splitlines()]
    assert all(line["content"] for line in lines if line["reason"] == BY_HAND)


@pytest.mark.parametrize(
    "save",
    [
        lambda image, file: image.save(file, compress_level=1),
        lambda image, file: image.save(file, exif=exif(t305="Editor")),
    ],
)
def test_an_edited_file_keeps_its_split(
    raw: Path, tmp_path: Path, save: Callable[[Image.Image, Path], None]
) -> None:
    out = tmp_path / "set"
    before = prepare(raw, out).manifest.set_index("path")
    for file in raw.glob("*/[3-7].png"):
        save(Image.open(file), file)
    after = prepare(raw, out).manifest.set_index("path")
    assert (before["md5"] != after["md5"]).sum() == 20
    pd.testing.assert_series_equal(before["split"], after["split"])
