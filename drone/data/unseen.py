"""Pictures of any folder, without those that a model was trained on."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drone.data.bins import bin_side
from drone.data.hashing import DEFAULT_MAX_DISTANCE, HASH_BYTES, near_pairs
from drone.data.roots import open_root
from drone.data.scan import Record, Source, list_sources, scan_file
from drone.errors import DataError, ImageError
from drone.serving.preprocess import Preprocessing, to_pixels


@dataclass(frozen=True)
class Unseen:
    """Pictures that a model has not seen, ready to be asked about."""

    paths: tuple[str, ...]
    labels_N: NDArray[np.int64]
    pixels_NHWC: NDArray[np.uint8]
    """At the side that every model takes."""

    sides_N: NDArray[np.int64]
    """Sides at which a model of mixed resolutions takes them."""

    records: tuple[Record, ...]
    preprocessing: Preprocessing
    left_out: dict[str, str]
    """Path and reason of each file that was not taken."""

    def at_own_sizes(self, positions_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pictures of one bin at its side, (B, side, side, 3) uint8; the larger are read anew.

        Raises:
            DataError: a file has changed since.
        """
        side_px = int(self.sides_N[positions_B[0]])
        if side_px == self.preprocessing.side_px:
            return self.pixels_NHWC[positions_B]
        settings = replace(self.preprocessing, side_px=side_px)
        return np.stack([_again(self.records[at], settings) for at in positions_B])


def _again(record: Record, settings: Preprocessing) -> NDArray[np.uint8]:
    try:
        return to_pixels(open_root(record.root).read(record.path, settings.max_bytes), settings)
    except (ImageError, OSError) as error:
        raise DataError(f"{record.root}/{record.path} has changed meanwhile: {error}") from error


def load_unseen(
    folder: Path,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    trained_on: pd.DataFrame | None,
    track: Callable[[Iterable[int], str, int], Iterable[int]],
) -> Unseen:
    """Reads a folder of class folders.

    Files that give no picture are left out, and so are copies and near duplicates of pictures
    that the model was trained or chosen on.

    Args:
        folder: with one subfolder a class; not every class needs to be there.
        classes: in the order of their indices.
        preprocessing: of the model.
        trained_on: columns md5, phash and split of the model's data set, or None if unknown.
        track: passes numbers on and shows how far they are: numbers, a word for it, how many.

    Raises:
        DataError: there is no picture of any class, or none that is new.
    """
    sources = list_sources([folder], classes, all_classes=False).sources

    def read(source: Source) -> tuple[Record, NDArray[np.uint8] | None]:
        record = scan_file(source, preprocessing)
        try:
            data = open_root(source.root).read(source.path, preprocessing.max_bytes)
            return record, None if record.problem else to_pixels(data, preprocessing)
        except (ImageError, OSError):
            return record, None

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Decoding leaves Python's lock alone.
        results = pool.map(read, sources)
        found = [next(results) for _ in track(range(len(sources)), "reading", len(sources))]
    left_out = {record.path: record.detail for record, pixels in found if pixels is None}
    good = [(record, pixels) for record, pixels in found if pixels is not None]
    known = _known([record for record, _ in good], trained_on)
    left_out |= {
        record.path: "the model was trained or chosen on it, or on a near duplicate"
        for (record, _), seen in zip(good, known, strict=True)
        if seen
    }
    new = [pair for pair, seen in zip(good, known, strict=True) if not seen]
    if not new:
        raise DataError(
            f"{folder} holds no picture that is new to the model: of {len(sources)} files "
            f"{len(left_out)} were left out ({next(iter(left_out.values()), 'none')})."
        )
    return Unseen(
        paths=tuple(record.path for record, _ in new),
        labels_N=np.array([list(classes).index(record.class_name) for record, _ in new]),
        pixels_NHWC=np.stack([pixels for _, pixels in new]),
        sides_N=bin_side([max(record.width, record.height) for record, _ in new]),
        records=tuple(record for record, _ in new),
        preprocessing=preprocessing,
        left_out=left_out,
    )


def _known(records: Sequence[Record], trained_on: pd.DataFrame | None) -> NDArray[np.bool_]:
    """Which of the records the model has seen in training or validation."""
    known = np.zeros(len(records), dtype=bool)
    if trained_on is None or not records:
        return known
    seen = trained_on[trained_on["split"] != "test"]
    hashes = _hashes([*(record.phash for record in records), *seen["phash"]])
    pairs = near_pairs(hashes, DEFAULT_MAX_DISTANCE)
    meets = pairs[(pairs[:, 0] < len(records)) & (pairs[:, 1] >= len(records))]
    known[meets[:, 0]] = True
    return known | np.isin([record.md5 for record in records], seen["md5"])


def _hashes(values: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex("".join(values)), np.uint8).reshape(-1, HASH_BYTES)
