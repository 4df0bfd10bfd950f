"""Frames of video files, decoded with FFmpeg: the only importer of PyAV."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import av
from av import VideoFrame
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image

from drone.errors import DataError
from drone.inference.unread import Unread, damaged
from drone.serving.preprocess import Preprocessing

_FORMATS = "mov,matroska,avi,gif"
"""Containers that FFmpeg may open. An allow-list: playlists and the like would open other files."""

_MAX_MISSING_S = 1.0
"""Seconds by which the last frame may come before the declared end. Whole clips may have such a
gap, from editing; one that was cut short misses more."""


@dataclass
class _Damage:
    """What of a clip could not be decoded."""

    num_frames: int = 0


def clip_frames(path: Path, settings: Preprocessing) -> Iterator[Unread]:
    """Yields the frames of a clip in the order in which they are shown; see `clips.frames`.

    Raises:
        DataError: It is no clip, has no video or frames that are too large.
        DamagedError: A part of it cannot be read. What can be read was yielded.
    """
    try:
        # As a stream: FFmpeg would take some names for addresses or patterns.
        with path.open("rb") as stream, _opened(path, stream) as container:
            yield from _video_frames(path, container, settings)
    except av.FFmpegError as error:
        raise damaged(path, f"{error.strerror}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _opened(path: Path, stream: BinaryIO) -> InputContainer:
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty. Copy it again from its source.")
    try:
        return av.open(stream, mode="r", options={"format_whitelist": _FORMATS})
    except av.FFmpegError as error:
        raise DataError(
            f"{path} is not a clip that can be read: {error.strerror}. Copy it again from its "
            f"source, or convert it: ffmpeg -i FILE clip.mp4"
        ) from error


def _video_frames(
    path: Path, container: InputContainer, settings: Preprocessing
) -> Iterator[Unread]:
    video = _video_stream(path, container, settings)
    damage, start_s, end_s = _Damage(), None, 0.0
    for number, frame in enumerate(_decoded(container, video, damage)):
        if frame.is_corrupt:  # The decoder filled gaps with what it had, such as grey.
            damage.num_frames += 1
            continue
        seconds = frame.time if frame.time is not None else number / float(video.guessed_rate or 25)
        start_s = seconds if start_s is None else start_s
        end_s = seconds - start_s
        yield number, end_s, partial(_to_image, frame)
    declared_s = _declared_duration_s(container, video)
    if damage.num_frames:
        raise damaged(path, f"{damage.num_frames} of its frames cannot be decoded")
    if declared_s - end_s > _MAX_MISSING_S:
        raise damaged(path, f"it ends after {end_s:.1f} of {declared_s:.1f} s")


def _video_stream(path: Path, container: InputContainer, settings: Preprocessing) -> VideoStream:
    if not container.streams.video:
        raise DataError(
            f"{path} has no video that can be read. Copy it again from its source, or leave it out."
        )
    video = container.streams.video[0]
    width, height = video.codec_context.width, video.codec_context.height
    if width * height > settings.max_pixels:
        raise DataError(
            f"The frames of {path} have {width} x {height} pixels; the limit is "
            f"{settings.max_pixels / 1e6:g} million. Convert it: ffmpeg -i FILE -vf scale=1920:-2 "
            f"clip.mp4"
        )
    # The header may say less than the frames have.
    video.codec_context.options = {"max_pixels": str(settings.max_pixels)}
    video.thread_type = "AUTO"
    return video


def _decoded(
    container: InputContainer, video: VideoStream, damage: _Damage
) -> Iterator[VideoFrame]:
    """Yields the frames in the order in which they are shown, and counts those that are damaged."""
    packets = container.demux(video)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            decoded = packet.decode()
        except av.error.InvalidDataError:
            damage.num_frames += 1
            continue
        yield from decoded


def _declared_duration_s(container: InputContainer, video: VideoStream) -> float:
    """Returns how long the clip says that it is; 0 if it does not."""
    if video.duration is not None and video.time_base is not None:
        return float(video.duration * video.time_base)
    # The container's duration is that of its longest stream, which may be the sound.
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / 1e6
    return 0.0


def _to_image(frame: VideoFrame) -> Image.Image:
    if any(component.is_alpha for component in frame.format.components):
        # As in `drone.serving.preprocess`, transparent pixels are white.
        image = Image.fromarray(frame.to_ndarray(format="rgba"))
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    else:
        image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image
