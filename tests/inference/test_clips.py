import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drone.errors import DamagedError, DataError
from drone.inference import Frame, frames, is_clip, numbered_images
from drone.serving.preprocess import Preprocessing
from tests.conftest import SHARED
from tests.inference.made_clips import CODECS, level_of, write_clip

SUFFIXES = [*CODECS, ".gif"]


def readable(path: Path) -> tuple[list[Frame], str]:
    """The frames that are yielded before the error, and its text."""
    read = []
    with pytest.raises(DamagedError) as caught:
        for frame in frames(path):
            read.append(frame)
    return read, str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_frames_at_an_interval(suffix: str, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / f"clip{suffix}")
    read = list(frames(clip, every_s=0.5))
    assert [frame.number for frame in read] == [0, 5, 10, 15, 20, 25]
    assert [frame.time_s for frame in read] == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5], abs=0.01)
    for frame in read:
        assert frame.image.mode == "RGB" and frame.image.size == (64, 48)
        # A GIF has few colours.
        level = np.asarray(frame.image)[8:40, 40:56].mean()
        assert level == pytest.approx(level_of(frame.number), abs=26 if suffix == ".gif" else 4)


def test_an_interval_that_is_no_multiple_does_not_drift(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=31)
    numbers = [frame.number for frame in frames(clip, every_s=0.25)]
    assert numbers == [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28, 30]


def test_all_frames_and_only_those_with_some_numbers(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    assert [frame.number for frame in frames(clip)] == list(range(30))
    assert [frame.number for frame in frames(clip, numbers={3, 17, 99})] == [3, 17]


@pytest.mark.parametrize(("turned", "black"), [(90, "bottom"), (-90, "top"), (180, "right")])
def test_frames_are_rotated_as_the_clip_says(turned: int, black: str, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=3, turned=turned)
    pixels = np.asarray(next(frames(clip)).image.convert("L"))
    assert pixels.shape == ((48, 64) if turned == 180 else (64, 48))
    edges = {
        "top": pixels[:8],
        "bottom": pixels[-8:],
        "left": pixels[:, :8],
        "right": pixels[:, -8:],
    }
    assert min(edges, key=lambda edge: edges[edge].mean()) == black


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    images = [Image.new("RGBA", (32, 32), (0, 0, 0, 0)) for _ in range(3)]
    for number, image in enumerate(images):
        image.paste((200, 0, 0, 255), (number * 8, 0, number * 8 + 8, 32))
    clip = tmp_path / "clip.gif"
    images[0].save(clip, save_all=True, append_images=images[1:], duration=100, disposal=2)
    assert is_clip(clip)
    pixels = np.asarray(list(frames(clip))[1].image)
    assert pixels[16, 12].tolist() == [200, 0, 0] and pixels[16, 2].tolist() == [255, 255, 255]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_content_tells_a_clip(suffix: str, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / f"clip{suffix}", num_frames=3)
    assert is_clip(clip.rename(tmp_path / "image.jpg"))


def test_what_is_no_clip(tmp_path: Path) -> None:
    for suffix in (".jpg", ".gif", ".webp", ".avif", ".png"):
        image = tmp_path / f"still{suffix}"
        Image.new("RGB", (32, 32), "red").save(image)
        assert not is_clip(image), suffix
    (tmp_path / "notes.txt").write_text("no image")
    assert not is_clip(tmp_path / "notes.txt")


@pytest.mark.parametrize("suffix", [".mkv", ".webm"])
def test_a_clip_that_was_cut_short_gives_its_first_frames(suffix: str, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / f"clip{suffix}")
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) // 2])
    read, error = readable(clip)
    assert 5 < len(read) < 25 and [frame.number for frame in read] == list(range(len(read)))
    assert f"{clip} is damaged: it ends after" in error and "of 3.0 s" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"no clip at all" * 100, "is not a clip that can be read: Invalid data"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n", "is not a clip that can be read"),
    ],
)
def test_what_cannot_be_read_is_an_error(content: bytes, message: str, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(content)
    assert is_clip(clip)
    with pytest.raises(DataError, match=message) as caught:
        list(frames(clip))
    assert str(clip) in str(caught.value)


def test_a_missing_clip_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing.mp4 cannot be read: No such file"):
        list(frames(tmp_path / "missing.mp4"))


def test_frames_that_are_too_large_are_refused(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=3)
    with pytest.raises(DataError, match="have 64 x 48 pixels; the limit is 0.001 million"):
        list(frames(clip, settings=Preprocessing(max_pixels=1000)))


def numbered(folder: Path, numbers: list[int]) -> Path:
    folder.mkdir()
    for number in numbers:
        Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / f"frame_{number:04}.png")
    return folder


def test_a_folder_of_other_images_is_no_clip(tmp_path: Path) -> None:
    folder = numbered(tmp_path / "frames", [0, 1])
    assert len(numbered_images(folder)) == 2
    shutil.copy(folder / "frame_0000.png", folder / "bird_0005.png")
    assert numbered_images(folder) == {}


def test_images_do_not_wait_for_ffmpeg() -> None:
    code = "import sys, drone.inference.clips as clips; clips.frames; print('av' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


@pytest.mark.real
def test_real_clips() -> None:
    clips = SHARED / "data" / "clips"
    if not clips.is_dir():
        pytest.skip(f"needs the real clips in {clips}")
    numbers = {path.name: len(list(frames(path, every_s=1.0))) for path in clips.glob("*.*4")}
    assert numbers and set(numbers.values()) == {11}
    assert len(list(frames(clips / "antiuav_ir_4.avi", every_s=1.0))) == 21


@pytest.mark.real
def test_noise_in_a_real_clip_costs_few_frames(tmp_path: Path) -> None:
    source = SHARED / "data" / "clips" / "antiuav_ir_4.avi"
    if not source.is_file():
        pytest.skip(f"needs the real clip {source}")
    content = bytearray(source.read_bytes())
    start = len(content) // 3
    content[start : start + 4000] = bytes(4000)
    clip = tmp_path / "noise.avi"
    clip.write_bytes(content)
    read, error = readable(clip)
    assert 480 < len(read) < 501 and "of its frames cannot be decoded" in error
