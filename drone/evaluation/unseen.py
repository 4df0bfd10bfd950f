"""Images of a labelled folder, without those that a model was trained on."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drone.data.bins import nearest_bin_side
from drone.data.prepare.listing import LeftOut, RawFile, list_raw_files
from drone.data.prepare.near_duplicates import near_pairs
from drone.data.prepare.perceptual_hash import HASH_BYTES
from drone.data.prepare.roots import open_root
from drone.data.prepare.scan import ScanRecord, scan_file
from drone.errors import DataError, ImageError
from drone.evaluation.batch_inference import Track
from drone.labels import ClassSet
from drone.names import storable
from drone.serving.preprocess import Preprocessing, to_pixels


@dataclass(frozen=True)
class Unseen:
    """Labelled images that a model was neither trained nor selected on."""

    paths: tuple[str, ...]
    labels_N: NDArray[np.int64]
    """Class indices."""

    pixels_NHWC: NDArray[np.uint8]
    """Pixels at the side of `preprocessing`."""

    sides_N: NDArray[np.int64]
    """Side of each image's bin in pixels, at which a multi-resolution model takes it."""

    records: tuple[ScanRecord, ...]
    preprocessing: Preprocessing
    left_out: dict[str, str]
    """Reason by path for each file that was left out."""

    folders_left_out: tuple[LeftOut, ...]
    """Files that were not read, by folder."""

    @property
    def num_left_out(self) -> int:
        """Number of files that were not evaluated."""
        return len(self.left_out) + sum(item.num_files for item in self.folders_left_out)

    def at_own_sizes(self, positions_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Returns images of one bin at its side, (B, side, side, 3) uint8.

        Images of larger bins are read again: all of them at their own sizes would not fit into
        memory.

        Raises:
            DataError: A file has changed since.
        """
        side_px = int(self.sides_N[positions_B[0]])
        if side_px == self.preprocessing.side_px:
            return self.pixels_NHWC[positions_B]
        settings = replace(self.preprocessing, side_px=side_px)
        return np.stack([_read_again(self.records[position], settings) for position in positions_B])


def _read_again(record: ScanRecord, settings: Preprocessing) -> NDArray[np.uint8]:
    try:
        return to_pixels(open_root(record.root).read(record.path, settings.max_bytes), settings)
    except (ImageError, OSError) as error:
        raise DataError(
            f"{record.root}/{record.path} changed during the evaluation ({error}). Evaluate again."
        ) from error


def load_unseen(
    folder: Path,
    classes: ClassSet,
    preprocessing: Preprocessing,
    trained_on: pd.DataFrame | None,
    track: Track,
) -> Unseen:
    """Loads a folder of class folders.

    Files without a usable image are left out, and so are copies and near duplicates of images
    that the model was trained or selected on.

    Args:
        folder: Folder with one subfolder per class; not every class needs to be there.
        classes: Classes in the order of their indices.
        preprocessing: Preprocessing of the model.
        trained_on: Columns content, phash and split of the model's data set, or None if unknown.
        track: Shows progress.

    Raises:
        DataError: There is no image of any class, or none that is new to the model.
    """
    listing = list_raw_files([folder], classes, require_all_classes=False)
    files = listing.files
    scanned = _read_all(files, preprocessing, track)
    new, left_out = _leave_out(scanned, trained_on)
    if not new:
        raise DataError(
            f"{folder} holds no image that is new to the model: {len(left_out)} of {len(files)} "
            f"files were left out (the first one: {next(iter(left_out.values()), 'none')}). Name "
            f"a folder with other images."
        )
    records = tuple(record for record, _ in new)
    return Unseen(
        paths=tuple(storable(record.path) for record in records),
        labels_N=np.array([classes.index(record.class_name) for record in records]),
        pixels_NHWC=np.stack([pixels for _, pixels in new]),
        sides_N=nearest_bin_side([max(record.width, record.height) for record in records]),
        records=records,
        preprocessing=preprocessing,
        left_out=left_out,
        folders_left_out=tuple(listing.left_out),
    )


def _read_all(
    files: Sequence[RawFile], preprocessing: Preprocessing, track: Track
) -> list[tuple[ScanRecord, NDArray[np.uint8] | None]]:
    """Reads files in threads, with progress; the results are in the order of the files."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Decoding releases Python's lock.
        results = pool.map(lambda file: _read(file, preprocessing), files)
        return [next(results) for _ in track(range(len(files)), "reading", len(files))]


def _read(
    file: RawFile, preprocessing: Preprocessing
) -> tuple[ScanRecord, NDArray[np.uint8] | None]:
    """Scans a file; its pixels are None if it holds no usable image."""
    record = scan_file(file, preprocessing)
    if record.problem:
        return record, None
    try:
        data = open_root(file.root).read(file.path, preprocessing.max_bytes)
        return record, to_pixels(data, preprocessing)
    except (ImageError, OSError):
        return record, None


def _leave_out(
    scanned: Sequence[tuple[ScanRecord, NDArray[np.uint8] | None]],
    trained_on: pd.DataFrame | None,
) -> tuple[list[tuple[ScanRecord, NDArray[np.uint8]]], dict[str, str]]:
    """Returns the images that are new to the model, and by path why others are left out."""
    left_out = {
        storable(record.path): record.detail for record, pixels in scanned if pixels is None
    }
    usable = [(record, pixels) for record, pixels in scanned if pixels is not None]
    seen_N = _seen([record for record, _ in usable], trained_on)
    left_out |= {
        storable(record.path): "the model was trained or selected on it, or on a near duplicate"
        for (record, _), seen in zip(usable, seen_N, strict=True)
        if seen
    }
    return [pair for pair, seen in zip(usable, seen_N, strict=True) if not seen], left_out


def _seen(records: Sequence[ScanRecord], trained_on: pd.DataFrame | None) -> NDArray[np.bool_]:
    """Returns which records the model was trained or selected on, near duplicates included."""
    seen_N = np.zeros(len(records), dtype=bool)
    if trained_on is None or not records:
        return seen_N
    # The test split took no part in training or selection.
    training = trained_on[trained_on["split"] != "test"]
    hashes = _hashes([*(record.phash for record in records), *training["phash"]])
    # One search over both lists, which is far below the N x M distances of comparing them.
    pairs = near_pairs(hashes)
    matches = pairs[(pairs[:, 0] < len(records)) & (pairs[:, 1] >= len(records))]
    seen_N[matches[:, 0]] = True
    # By content as well: near_pairs skips pairs where very many hashes are equal.
    return seen_N | np.isin([record.content for record in records], training["content"])


def _hashes(values: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex("".join(values)), np.uint8).reshape(-1, HASH_BYTES)
