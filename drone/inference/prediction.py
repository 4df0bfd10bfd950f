"""Predicts items: images as a whole, boxes in them, and the frames of clips."""

import functools
import hashlib
import io
import itertools
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drone.data.prepare.roots import Opener, open_root
from drone.errors import DataError, ImageError
from drone.inference.boxes import MARGIN, Box, crop, visible_part
from drone.inference.clips import CLIP_SUFFIXES, Frame, frames, is_clip
from drone.inference.items import Item
from drone.inference.rows import Row
from drone.inference.surroundings import MIN_MARGIN, SHARE, discount, paint_out
from drone.serving.many import UNREADABLE, cannot_be_read, map_ahead
from drone.serving.predictor import Prediction, Predictor

EVERY_S = 0.5
"""Seconds from one frame of a clip to the next."""

BAD_BOX, DAMAGED_CLIP = "bad-box", "damaged-clip"
"""Reasons of rows without a prediction."""

_THUMBNAIL_PX = 144
"""Maximum width and height of the images on the contact sheet."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """What is looked at in a file."""

    every_s: float | None = None
    """Seconds from one frame of a clip to the next, 0 for all; None for `EVERY_S`, and all frames
    that have boxes."""

    margin: float = MARGIN
    """Margin around boxes, as a share of their longer side."""

    discount: float = SHARE
    """Share of what a box's surroundings say by themselves that is subtracted from its prediction,
    0 to 1."""


def predict_rows(
    predictor: Predictor,
    items: Iterable[Item],
    opener: Opener = open_root,
    threads: int | None = None,
    views: Views | None = None,
) -> Generator[Row, None, None]:
    """Yields the rows of each item, in their order; never raises for a bad file.

    Args:
        predictor: The model; one with `threads=1` is fastest, since each image has a thread.
        items: What to predict; taken as fast as rows are consumed.
        opener: Opens the roots of the items.
        threads: Images or frames in work at the same time; None takes one per core.
        views: What is looked at in clips and around boxes.
    """
    views = views or Views()
    predict_image = functools.partial(_predict_image, predictor, opener, views)
    for are_clips, group in itertools.groupby(items, is_clip_item):
        if are_clips:
            for item in group:
                yield from _marked(_Clip(predictor, item, views).rows(threads))
        else:
            for rows in map_ahead(predict_image, group, threads):
                yield from _marked(iter(rows))


def _marked(rows: Iterator[Row]) -> Iterator[Row]:
    """Yields the rows of one item, of which the last is marked: until then it is not finished."""
    previous = next(rows)
    for row in rows:
        yield replace(previous, is_last=False)
        previous = row
    yield replace(previous, is_last=True)


def is_clip_item(item: Item) -> bool:
    """Whether an item is a clip in a folder of this machine."""
    path = item.local_file
    try:
        return path is not None and path.is_file() and is_clip(path)
    except OSError:
        return False  # The row says why it cannot be read.


def _predict_image(predictor: Predictor, opener: Opener, views: Views, item: Item) -> list[Row]:
    """Returns the rows of an image: one, or one for each box."""
    blank = Row(item=item, frame=item.frame, time_s=item.time_s)
    max_bytes = predictor.info.preprocessing.max_bytes
    try:
        data = opener(item.root).read(item.name, max_bytes)
    except OSError as error:
        return [replace(blank, reason=UNREADABLE, detail=cannot_be_read(error))]
    # Of a file that is too large only the beginning was read.
    if len(data) <= max_bytes:
        blank = replace(blank, md5=_md5(data).hexdigest())
    if item.name.lower().endswith(CLIP_SUFFIXES):  # In an archive or in object storage.
        detail = "It is a clip, which is read from local folders only: copy it to one."
        return [replace(blank, reason="unsupported", detail=detail)]
    try:
        with predictor.decoded(data, whole=bool(item.boxes)) as image:
            # Cut before any is predicted: the decoded image may be large, and is released first.
            cuts = [_cut(predictor, image, box, views) for box in item.boxes or [None]]
    except ImageError as error:
        return [replace(blank, reason=error.reason, detail=str(error))]
    return [_predict_cut(predictor, blank, cut, views) for cut in cuts]


class _Clip:
    """A clip whose frames are being predicted."""

    def __init__(self, predictor: Predictor, item: Item, views: Views) -> None:
        self._predictor, self._item, self._views = predictor, item, views
        self._boxes: dict[int | None, list[Box]] = {}
        for box in item.boxes:
            self._boxes.setdefault(box.frame, []).append(box)
        self._seen: set[int] = set()
        self._problem = ""
        self._blank = Row(item=item)

    def rows(self, threads: int | None) -> Iterator[Row]:
        """Yields a row for each frame or for each of its boxes, then for what cannot be read."""
        self._blank = replace(self._blank, md5=self._checksum())
        for rows in map_ahead(self._predict, self._frames(), threads):
            yield from rows
        yield from self._missing_boxes()
        if self._problem:
            yield replace(self._blank, reason=DAMAGED_CLIP, detail=self._problem)
        elif not self._seen and not self._item.boxes:
            yield replace(self._blank, reason=DAMAGED_CLIP, detail="The clip has no frames.")
        elif not self._seen and self._views.every_s:
            detail = "The clip has none of the frames that its boxes name."
            yield replace(self._blank, reason=BAD_BOX, detail=detail)

    def _checksum(self) -> str:
        path = self._item.local_file
        assert path is not None
        try:
            with path.open("rb") as stream:
                return hashlib.file_digest(stream, _md5).hexdigest()
        except OSError:
            return ""  # Reading its frames says why.

    def _frames(self) -> Iterator[Frame]:
        path, every_s = self._item.local_file, self._views.every_s
        assert path is not None
        numbers = {number for number in self._boxes if number is not None}
        if every_s is None:
            every_s = 0.0 if numbers else EVERY_S
        settings = self._predictor.info.preprocessing
        try:
            only = numbers if self._boxes else None
            for frame in frames(path, every_s, only, settings=settings):
                self._seen.add(frame.number)
                yield frame
        except DataError as error:
            self._problem = str(error)

    def _predict(self, frame: Frame) -> list[Row]:
        blank = replace(self._blank, frame=frame.number, time_s=frame.time_s)
        boxes = self._boxes.get(frame.number, [None])
        cuts = [_cut(self._predictor, frame.image, box, self._views) for box in boxes]
        return [_predict_cut(self._predictor, blank, cut, self._views) for cut in cuts]

    def _missing_boxes(self) -> Iterator[Row]:
        """Yields a row for each box of a frame that was not read; those between steps are none."""
        for box in self._boxes.get(None, []):
            yield self._bad(box, "it names no frame of the clip.")
        if self._views.every_s:
            return
        for number, boxes in self._boxes.items():
            if number is not None and number not in self._seen:
                yield from (self._bad(box, "the clip has no such frame.") for box in boxes)

    def _bad(self, box: Box, why: str) -> Row:
        track, detail = box.track or None, f"{box.origin}: {why}"
        return replace(self._blank, frame=box.frame, track=track, reason=BAD_BOX, detail=detail)


def _md5(data: bytes = b"") -> "hashlib._Hash":
    # Not for security, which lets it run where FIPS rules forbid md5.
    return hashlib.md5(data, usedforsecurity=False)


@dataclass(frozen=True)
class _Cut:
    """A whole image or a box in it, as the model sees it."""

    pixels_HWC: NDArray[np.uint8] | None
    """None for a box that shows nothing."""

    size: tuple[int, int]
    box: tuple[float, float, float, float] | None
    track: str | None
    detail: str = ""

    surroundings_HWC: NDArray[np.uint8] | None = None
    """The pixels with the object painted out, if its prediction is to be without part of what they
    say."""


def _cut(predictor: Predictor, image: Image.Image, box: Box | None, views: Views) -> _Cut:
    if box is None:
        return _Cut(predictor.resize(image), image.size, None, None)
    track = box.track or None
    try:
        left, top, right, bottom = visible_part(box, *image.size)
        square = crop(image, box, views.margin)
    except DataError as error:
        return _Cut(None, image.size, None, track, str(error))
    rectangle = (left, top, right - left, bottom - top)
    pixels_HWC = predictor.resize(square)
    around_HWC = None
    if views.discount and views.margin >= MIN_MARGIN:
        around_HWC = paint_out(pixels_HWC, rectangle[2:], views.margin)
    return _Cut(pixels_HWC, square.size, rectangle, track, surroundings_HWC=around_HWC)


def _predict_cut(predictor: Predictor, blank: Row, cut: _Cut, views: Views) -> Row:
    row = replace(blank, box=cut.box, track=cut.track)
    if cut.pixels_HWC is None:
        return replace(row, reason=BAD_BOX, detail=cut.detail)
    return replace(
        row,
        # For the contact sheet.
        prediction=_prediction(predictor, cut.pixels_HWC, cut.surroundings_HWC, views.discount),
        thumbnail=_thumbnail(cut.pixels_HWC, cut.size),
    )


def _prediction(
    predictor: Predictor,
    pixels_HWC: NDArray[np.uint8],
    surroundings_HWC: NDArray[np.uint8] | None,
    share: float,
) -> Prediction:
    outputs = predictor.predict_outputs(pixels_HWC[None], evidence=True)
    if surroundings_HWC is not None:
        around = predictor.predict_outputs(surroundings_HWC[None])
        probs_NK = discount(outputs.probs_NK, around.probs_NK, predictor.info.classes, share)
        outputs = replace(outputs, probs_NK=probs_NK)
    return predictor.to_predictions(outputs)[0]


def _thumbnail(pixels_HWC: NDArray[np.uint8], size: tuple[int, int]) -> bytes:
    """Returns the model's input as a small JPEG of the image's own aspect ratio."""
    scale = _THUMBNAIL_PX / max(size)
    width, height = (max(1, round(side * scale)) for side in size)
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).resize((width, height)).save(buffer, "JPEG", quality=75)
    return buffer.getvalue()
