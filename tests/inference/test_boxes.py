import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drone.errors import DataError
from drone.inference import Box, assign_boxes, crop, read_boxes, tracks_of
from drone.inference.boxes import visible_part
from tests.conftest import SHARED


def written(target: Path, text: str) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    return target


def box(x: float, y: float, w: float, h: float, **other) -> Box:
    return Box(path="a.jpg", x=x, y=y, w=w, h=h, origin="boxes.csv, line 2", **other)


def test_boxes_of_a_csv(tmp_path: Path) -> None:
    header = "\ufeffPath, x,y,w,h,class,track,frame\n"
    text = f"{header}clip.mp4,1.5,2,30,40,bird,b7,12\n\na.jpg,0,0,5,5,,,\n"
    first, second = read_boxes(written(tmp_path / "boxes.csv", text))
    assert (first.x, first.y, first.w, first.h) == (1.5, 2, 30, 40) and not first.relative
    assert (first.path, first.track, first.frame) == ("clip.mp4", "b7", 12)
    assert (second.path, second.track, second.frame) == ("a.jpg", "", None)
    assert second.origin == f"{tmp_path / 'boxes.csv'}, line 4"


def test_the_column_path_may_be_called_file(tmp_path: Path) -> None:
    read = read_boxes(written(tmp_path / "boxes.csv", "file,x,y,w,h\na.jpg,1,2,3,4\n"))
    assert read[0].path == "a.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,x,y,w\na,1,2,3\n", r"boxes.csv has no column h. It has: path, x, y, w. Boxes are"),
        ("path,x,y,w,h\n", "has no boxes"),
        ("path,x,y,w,h\na.jpg,1,2,3,4\na.jpg,1,two,3,4\n", "line 3: y is 'two'; it must be a num"),
        ("path,x,y,w,h\na.jpg,1,2,nan,4\n", "line 2: w is 'nan'"),
        ("path,x,y,w,h\na.jpg,1,2,3\n", "line 2: h is ''"),
        ("path,x,y,w,h\n,1,2,3,4\n", "line 2: the path is empty"),
        ("path,x,y,w,h,frame\na.mp4,1,2,3,4,1.5\n", "line 2: frame is '1.5'; it must be a whole"),
    ],
)
def test_a_bad_line_of_a_csv_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_boxes(written(tmp_path / "boxes.csv", text))


def test_boxes_of_a_yolo_folder(tmp_path: Path) -> None:
    written(
        tmp_path / "labels" / "train" / "a.b.txt", "0 0.5 0.5 0.2 0.1\n\n1 0.25 0.5 0.5 1 0.9 4\n"
    )
    written(tmp_path / "labels" / "classes.txt", "bird\ndrone\n")
    first, second = read_boxes(tmp_path / "labels")
    assert first.path == "train/a.b" and first.relative and first.track == ""
    assert (first.x, first.y, first.w, first.h) == pytest.approx((0.4, 0.45, 0.2, 0.1))
    assert second.track == "4" and second.origin.endswith("a.b.txt, line 3")


def test_boxes_of_one_yolo_file(tmp_path: Path) -> None:
    assert read_boxes(written(tmp_path / "a.txt", "0 .5 .5 .2 .1\n"))[0].path == "a"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2", "line 1: it has 4 values; a box of YOLO has 5"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2", "line 1: it has 9 values"),
        ("0 320 200 20 10", "line 1: centre x is 320; YOLO files have shares"),
        ("0 0.5 0.5 a 0.1", "line 1: width is 'a'"),
    ],
)
def test_a_bad_line_of_a_yolo_file_is_named(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_boxes(written(tmp_path / "a.txt", line))


def test_boxes_of_a_coco_file(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 7, "file_name": "train/a.jpg", "width": 640, "height": 480}],
        "annotations": [{"id": 1, "image_id": 7, "bbox": [1, 2, 3, 4.5], "track_id": 5}],
    }
    read = read_boxes(written(tmp_path / "boxes.json", json.dumps(content)))
    assert [(b.path, b.x, b.y, b.w, b.h, b.track) for b in read] == [
        ("train/a.jpg", 1, 2, 3, 4.5, "5")
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image_id": 1}]', "is no COCO file: it needs images with id and file_name"),
        ("{broken", "is no COCO file"),
        (
            '{"images": [], "annotations": [{"image_id": 1, "bbox": [1,2,3,4]}]}',
            "annotation 1 need",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1}]}',
            "annotation 1 needs the image_id of one of the images, and a bbox of x, y, width",
        ),
    ],
)
def test_what_is_wrong_with_a_coco_file_is_named(
    content: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        read_boxes(written(tmp_path / "boxes.json", content))


def test_boxes_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_boxes(tmp_path / "missing.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\xff")
    with pytest.raises(DataError, match="cannot be read: .*Boxes are a CSV"):
        read_boxes(tmp_path / "binary.csv")


@pytest.mark.parametrize(
    "path", ["a/b.jpg", "./a/b.jpg", "/data/a/b.jpg", "b.jpg", "a/b", "a\\b.jpg"]
)
def test_boxes_find_their_file(path: str) -> None:
    files = [Path("/data/a/b.jpg"), Path("/data/a/c.jpg")]
    one = Box(path=path, x=0, y=0, w=1, h=1, origin="boxes.csv, line 2")
    assert assign_boxes([one], files) == {files[0]: [one]}


def test_boxes_of_other_files_are_left_out() -> None:
    mine, other = box(0, 0, 1, 1), Box(path="z.jpg", x=0, y=0, w=1, h=1, origin="line 3")
    assert assign_boxes([mine, other], [Path("a.jpg")]) == {Path("a.jpg"): [mine]}
    with pytest.raises(DataError, match=r"line 3: the box is for z.jpg, and no box is for any"):
        assign_boxes([other], [Path("a.jpg")])


def test_a_path_that_fits_two_files_is_an_error() -> None:
    files = [Path("one/a.jpg"), Path("two/a.jpg")]
    with pytest.raises(DataError, match=r"line 2: a.jpg may be one/a.jpg or two/a.jpg"):
        assign_boxes([box(0, 0, 1, 1)], files)


def test_tracks_are_in_the_order_of_their_frames() -> None:
    boxes = [
        box(0, 0, 1, 1, track=name, frame=frame) for frame, name in [(5, "a"), (3, "b"), (2, "a")]
    ]
    tracks = tracks_of(boxes)
    assert {name: [b.frame for b in found] for name, found in tracks.items()} == {
        "a": [2, 5],
        "b": [3],
    }


def test_unnamed_boxes_are_one_track_only_if_no_frame_has_two() -> None:
    assert list(tracks_of([box(0, 0, 1, 1, frame=0), box(0, 0, 1, 1, frame=1)])) == [""]
    assert tracks_of([box(0, 0, 1, 1, frame=1), box(5, 0, 1, 1, frame=1)]) == {}


@pytest.fixture
def gradient() -> Image.Image:
    """The red of a pixel is its column, the green its row."""
    rows, columns = np.mgrid[0:80, 0:100].astype(np.uint8)
    return Image.fromarray(np.stack([columns, rows, rows * 0], axis=-1))


def test_a_crop_is_a_square_with_its_margin(gradient: Image.Image) -> None:
    pixels = np.asarray(crop(gradient, box(40, 30, 20, 10), margin=0.5))
    assert pixels.shape == (40, 40, 3)
    assert pixels[0, 0].tolist() == [30, 15, 0] and pixels[-1, -1].tolist() == [69, 54, 0]


def test_beyond_the_edges_the_outermost_pixels_are_repeated(gradient: Image.Image) -> None:
    pixels = np.asarray(crop(gradient, box(0, 70, 10, 10), margin=0.5))
    assert pixels.shape == (20, 20, 3)
    assert (pixels[:, :5, 0] == 0).all() and (pixels[-5:, :, 1] == 79).all()
    assert pixels[0, -1].tolist() == [14, 65, 0]


def test_the_part_of_a_box_outside_of_the_image_is_left_out(gradient: Image.Image) -> None:
    inside = crop(gradient, box(90, 0, 10, 10))
    assert (np.asarray(crop(gradient, box(90, -20, 500, 30))) == np.asarray(inside)).all()


def test_a_relative_box(gradient: Image.Image) -> None:
    relative = crop(gradient, box(0.4, 0.5, 0.2, 0.25, relative=True))
    assert (np.asarray(relative) == np.asarray(crop(gradient, box(40, 40, 20, 20)))).all()


def test_a_square_around_a_long_strip_is_bounded() -> None:
    levels = np.repeat(np.linspace(0, 255, 20000).astype(np.uint8)[None], 100, axis=0)
    strip = Image.fromarray(np.stack([levels] * 3, axis=-1))
    pixels = np.asarray(crop(strip, box(0, 0, 20000, 100), margin=0.5))
    assert pixels.shape == (4096, 4096, 3)
    assert pixels[0, 2048, 0] == pytest.approx(127, abs=2) and pixels[-1, -1, 0] > 252


def test_the_part_of_a_box_that_is_in_the_image() -> None:
    assert visible_part(box(-5, 70, 20, 20), 100, 80) == (0, 70, 15, 80)
    assert visible_part(box(0.5, 0.5, 0.7, 0.25, relative=True), 100, 80) == (50, 40, 100, 60)


def test_a_tiny_box_still_gives_a_pixel(gradient: Image.Image) -> None:
    assert crop(gradient, box(50, 50, 0.2, 0.2), margin=0).size == (1, 1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (box(5, 5, 0, 4), "boxes.csv, line 2: the box is 0 wide and 4 high: it is empty"),
        (box(5, 5, 4, -1), "4 wide and -1 high"),
        (box(100, 5, 9, 9), "outside of the image, which has 100 x 80 pixels"),
        (box(-9, 5, 9, 9), "outside of the image"),
    ],
)
def test_a_box_without_pixels_says_why(bad: Box, message: str, gradient: Image.Image) -> None:
    with pytest.raises(DataError, match=message):
        crop(gradient, bad)


@pytest.mark.real
def test_real_boxes() -> None:
    folder = SHARED / "data" / "distant"
    if not folder.is_dir():
        pytest.skip(f"needs the real images in {folder}")
    assigned = assign_boxes(read_boxes(folder / "boxes.csv"), sorted(folder.rglob("*.jpg")))
    assert sum(map(len, assigned.values())) == 68
    for file, boxes in assigned.items():
        with Image.open(file) as image:
            assert all(crop(image.convert("RGB"), one).width >= 8 for one in boxes)
