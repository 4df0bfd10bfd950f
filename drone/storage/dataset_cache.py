"""Prepared data sets at other locations, copied once to each machine that needs them."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from drone.data.dataset import DATASET_FILE, Dataset, is_dataset, open_dataset
from drone.errors import DataError
from drone.project import user_cache
from drone.storage.filesystem import copy_here, local_path, read_text


def cache_folder(name: str = "datasets") -> Path:
    """Returns this machine's cache folder; DRONE_CACHE sets another location.

    Args:
        name: Name of the subfolder: "datasets" holds copies by fingerprint, "scans" holds scan
            results.
    """
    root = os.environ.get("DRONE_CACHE")
    return (Path(root) if root else user_cache()) / name


def open_at(
    location: str,
    fingerprint: str | None = None,
    notify: Callable[[str], None] = lambda _: None,
    *,
    at_bins: bool = False,
) -> Dataset:
    """Opens the data set at a location; a remote one is copied to this machine first.

    Args:
        location: Folder, s3://..., or head:///... for a folder of the job's machine.
        fingerprint: Fingerprint that the data set must have; None accepts any.
        notify: Called with a message before a copy, which may take a while.
        at_bins: Whether the images are read at the sides of their bins.

    Raises:
        DataError: There is no data set, it is damaged, has another fingerprint, or has no bins.
    """
    dataset = _open(location, fingerprint, notify, at_bins)
    if at_bins and not dataset.has_bins:
        raise _without_bins(dataset, location)
    return dataset.at_bins() if at_bins else dataset


def _without_bins(dataset: Dataset, location: str) -> DataError:
    # Imported here: what prepares a data set is not needed to read one.
    from drone.data.prepare.plan import command_for

    # Bins need the default side, so it is not the one that the data set may have.
    again = command_for(dataset, bins=True, **{"preprocessing.side_px": None})
    copied = f" - then copy it to {location} again" if "://" in location else ""
    return DataError(
        f"{location} has its images at {dataset.preprocessing.side_px} px only, and a model with "
        f"a resizer takes them at their own sizes. Pack those too where it was prepared: "
        f"{again}{copied}"
    )


def _open(
    location: str, fingerprint: str | None, notify: Callable[[str], None], at_bins: bool
) -> Dataset:
    folder = local_path(location)
    # A machine that has the folder of the job's machine, as on shared storage, reads it directly.
    if "://" not in location or (fingerprint is not None and is_dataset(folder)):
        dataset = open_dataset(folder)
        if fingerprint in (None, dataset.fingerprint):
            return dataset
        if "://" not in location:
            raise DataError(
                f"{location} holds the data set {dataset.fingerprint[:12]} on this machine, but "
                f"the job uses {str(fingerprint)[:12]}. Remove it there, or copy the right one."
            )
    if fingerprint is None:
        fingerprint = _read_fingerprint(location)
    cached = cache_folder() / fingerprint
    cached.parent.mkdir(parents=True, exist_ok=True)
    with cached.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Of several workers on a machine, one copies.
        # A copy made before bins were packed has the same fingerprint.
        if not is_dataset(cached) or (at_bins and not open_dataset(cached).has_bins):
            notify(f"Copying the data set from {location} to {cached}")
            _copy(location, fingerprint, cached)
    return open_dataset(cached)


def _copy(location: str, fingerprint: str, cached: Path) -> None:
    arriving = cached.with_suffix(".arriving")
    shutil.rmtree(arriving, ignore_errors=True)
    try:
        copy_here(location, arriving)
    except OSError as error:
        raise DataError(f"Cannot copy the data set {location}: {error}.") from error
    copied = open_dataset(arriving).fingerprint
    if copied != fingerprint:
        raise DataError(
            f"{location} now holds the data set {copied[:12]}, but the job started on "
            f"{fingerprint[:12]}. Start the job again."
        )
    shutil.rmtree(cached, ignore_errors=True)
    # Only when complete and verified: a kill must not leave half a data set in the cache.
    arriving.rename(cached)


def _read_fingerprint(location: str) -> str:
    try:
        text = read_text(f"{location.rstrip('/')}/{DATASET_FILE}")
    except OSError as error:
        raise DataError(
            f"{location} is not a prepared data set, or cannot be read: {error}. "
            f"Copy there the folder that python ray_jobs/prepare.py wrote."
        ) from error
    try:
        return str(json.loads(text)["fingerprint"])
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{location} is damaged: its {DATASET_FILE} names no fingerprint. Copy the data set "
            f"there again."
        ) from error
