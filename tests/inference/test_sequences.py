"""Clips, numbered images and boxes: their rows, and one answer for each sequence."""

import csv
import dataclasses
import hashlib
import shutil
from pathlib import Path

import pytest

from drone.errors import DataError
from drone.inference.boxes import MARGIN
from drone.inference.prediction import EVERY_S
from drone.inference.surroundings import SHARE
from drone.model.export import add_metadata
from drone.workflows.prediction import PredictionResult, predict
from drone.workflows.requests import PredictRequest
from tests.inference.conftest import write_image
from tests.inference.made_clips import write_clip


@pytest.fixture
def run(onnx: Path, tmp_path: Path):
    """Runs the workflow on names below the temporary folder."""

    def run(*names: str, **settings: object) -> tuple[PredictionResult, list[dict[str, str]]]:
        out = tmp_path / "out"
        images = tuple(str(tmp_path / name) for name in names)
        request = {"onnx": onnx, "images": images, "out": out, **settings}
        result = predict(PredictRequest(**request))
        with (out / "predictions.csv").open(newline="") as stream:
            return result, list(csv.DictReader(stream))

    return run


def test_frames_of_a_clip_and_one_answer_for_it(run, tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "image.png")
    write_clip(tmp_path / "in" / "clip.mp4")
    result, rows = run("in")
    frames = [row for row in rows if row["frame"]]
    # Three seconds at ten frames a second.
    assert [float(row["time_s"]) for row in frames] == pytest.approx(
        [number * EVERY_S for number in range(6)]
    )
    assert len(rows) == 7 and result.num_images == 2
    assert "alarm" not in rows[0] and result.num_alarms is None
    (sequence,) = result.sequences
    assert sequence.path == str(tmp_path / "in" / "clip.mp4")
    assert sequence.consensus.num_frames == 6
    page = (tmp_path / "out" / "sequences.html").read_text()
    assert sequence.prediction.label in page and "clip.mp4" in page
    assert (tmp_path / "out" / "sequences_plots" / "0.png").stat().st_size > 1000
    # The same command again: nothing is new, and the answers are the same.
    again, rows_again = run("in")
    assert again.num_new == 0 and rows_again == rows
    assert [found.as_dict() for found in again.sequences] == [sequence.as_dict()]


def test_boxes_of_frames_are_followed_by_their_tracks(run, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4")
    write_image(tmp_path / "image.png")
    write_image(tmp_path / "without.png")
    lines = ["path,x,y,w,h,track,frame"]
    lines += [f"clip.mp4,{number},10,20,20,left,{number}" for number in range(8)]
    lines += [f"clip.mp4,40,10,20,20,right,{number}" for number in range(0, 8, 2)]
    lines += ["clip.mp4,0,0,9,9,,99", "clip.mp4,0,0,9,9,,", "image.png,5,5,30,30,,"]
    lines += ["image.png,500,5,30,30,,"]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    names = ("clip.mp4", "image.png", "without.png")
    result, rows = run(*names, boxes=tmp_path / "boxes.csv")
    tracks = {found.track: found.consensus.num_frames for found in result.sequences}
    assert tracks == {"left": 8, "right": 4}
    # One box beyond the end of the clip, one without a frame, one outside of the image.
    assert result.not_read == {"bad-box": 3}
    assert sum(result.labels.values()) == 8 + 4 + 1 and result.num_images == 2
    box = next(row for row in rows if row["path"].endswith("image.png") and row["label"])
    assert [float(box[name]) for name in "xywh"] == [5, 5, 30, 30]


def test_the_first_frame_with_a_box_of_each_step(run, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    boxes = tmp_path / "boxes.csv"
    lines = [f"clip.mp4,1,1,30,30,{number}" for number in (3, 4, 5, 9)]
    boxes.write_text("\n".join(["path,x,y,w,h,frame", *lines]))
    # Ten frames a second.
    _, rows = run("clip.mp4", boxes=boxes, every_s=0.5)
    assert [row["frame"] for row in rows] == ["3", "5"]
    assert rows[0]["md5"] == hashlib.md5(clip.read_bytes()).hexdigest()
    (tmp_path / "out").rename(tmp_path / "out before")
    boxes.write_text("path,x,y,w,h,frame\nclip.mp4,1,1,30,30,99\n")
    _, rows = run("clip.mp4", boxes=boxes, every_s=2.0)
    assert [row["reason"] for row in rows] == ["bad-box"]
    assert rows[0]["detail"] == "The clip has none of the frames that its boxes name."


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_clip_raises_an_alarm_as_an_image_does(
    run, onnx: Path, tmp_path: Path, threshold: float
) -> None:
    write_clip(tmp_path / "clip.mp4")
    shutil.copy(onnx, tmp_path / "alarming.onnx")
    add_metadata(tmp_path / "alarming.onnx", {"alarm_above": repr(threshold)})
    result, rows = run("clip.mp4", onnx=tmp_path / "alarming.onnx")
    raised = threshold == 0
    assert {row["alarm"] for row in rows} == {str(raised).lower()}
    assert result.num_alarms == (len(rows) if raised else 0)
    (sequence,) = result.sequences
    assert sequence.as_dict()["alarm"] is raised is ("alarm; " in sequence.sentence)
    with (tmp_path / "out" / "sequences.csv").open(newline="") as stream:
        assert next(csv.DictReader(stream))["alarm"] == str(raised)
    assert f"{result.num_alarms} alarms" in (tmp_path / "out" / "predictions.html").read_text()


def test_numbered_images_are_frames_of_one_clip(run, tmp_path: Path) -> None:
    for number in range(5):
        write_image(tmp_path / "frames" / f"f_{number + 1:03}.png", number)
    result, rows = run("frames")
    assert [row["frame"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert [found.path for found in result.sequences] == [str(tmp_path / "frames")]
    write_image(tmp_path / "frames" / "other.png")
    (tmp_path / "out").rename(tmp_path / "out before")
    result, rows = run("frames")
    assert not result.sequences and len(rows) == 6


def test_a_damaged_clip_gives_what_can_be_read_and_says_so(run, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "cut.avi", size=(640, 480))
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) // 2])
    (tmp_path / "not.mp4").write_bytes(b"no clip at all")
    result, rows = run("cut.avi", "not.mp4", every_s=0.0)
    assert result.not_read == {"damaged-clip": 2}
    assert result.sequences[0].consensus.num_frames > 5
    details = [row["detail"] for row in rows if row["reason"]]
    assert any("cut.avi is damaged" in detail for detail in details)
    assert any("not.mp4 is not a clip that can be read" in detail for detail in details)


def test_boxes_of_nothing_are_refused(run, tmp_path: Path) -> None:
    write_image(tmp_path / "image.png")
    (tmp_path / "boxes.csv").write_text("path,x,y,w,h\nother.png,1,1,5,5\n")
    with pytest.raises(DataError, match=r"boxes.csv, line 2: the box is for other.png"):
        run("image.png", boxes=tmp_path / "boxes.csv")


def test_the_default_margin_and_discount_are_the_measured_ones() -> None:
    # The request names it too, since importing boxes takes longer than --help may.
    fields = {field.name: field.default for field in dataclasses.fields(PredictRequest)}
    assert fields["margin"] == MARGIN and fields["discount"] == SHARE
