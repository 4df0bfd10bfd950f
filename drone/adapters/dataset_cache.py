"""Prepared data sets that are elsewhere, copied once to each machine that needs them."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from drone.adapters import storage
from drone.data.dataset import DATASET_FILE, Dataset, is_dataset, open_dataset
from drone.errors import DataError


def cache_folder(name: str = "datasets") -> Path:
    """Where this machine keeps its copies, by fingerprint; DRONE_CACHE sets another place."""
    place = os.environ.get("DRONE_CACHE")
    return (Path(place) if place else Path.home() / ".cache" / "drone") / name


def open_at(
    place: str,
    fingerprint: str | None = None,
    say: Callable[[str], None] = lambda _: None,
    *,
    at_bins: bool = False,
) -> Dataset:
    """The data set of a folder or URI; one that is not on this machine is copied here first.

    Args:
        place: folder, s3://..., or head:///... for a folder of the job's machine.
        fingerprint: that it must have; None takes what is there.
        say: hears of a copy that may take a while.
        at_bins: reads the pictures at the sides of their bins.

    Raises:
        DataError: there is none, it is damaged, has another fingerprint, or no bins.
    """
    dataset = _opened(place, fingerprint, say, at_bins)
    return dataset.at_bins(place) if at_bins else dataset


def _opened(
    place: str, fingerprint: str | None, say: Callable[[str], None], at_bins: bool
) -> Dataset:
    folder = Path(place.removeprefix(f"{storage.HEAD}://"))
    if "://" not in place or (fingerprint is not None and is_dataset(folder)):
        dataset = open_dataset(folder)
        if fingerprint in (None, dataset.fingerprint):
            return dataset
        if "://" not in place:
            raise DataError(
                f"{place} is the data set {dataset.fingerprint[:12]} on this machine, and the job "
                f"is on {str(fingerprint)[:12]}; remove it there or copy the right one."
            )
    if fingerprint is None:
        fingerprint = _fingerprint_at(place)
    kept = cache_folder() / fingerprint
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Several workers of a machine: one of them copies.
        # One that was copied before bins were packed has the same fingerprint.
        if not is_dataset(kept) or (at_bins and not open_dataset(kept).has_bins):
            say(f"Copying the data set from {place} to {kept}")
            arriving = kept.with_suffix(".arriving")
            shutil.rmtree(arriving, ignore_errors=True)
            try:
                storage.copy_here(place, arriving)
            except OSError as error:
                raise DataError(f"The data set {place} cannot be copied: {error}") from error
            found = open_dataset(arriving).fingerprint
            if found != fingerprint:
                raise DataError(
                    f"{place} is the data set {found[:12]} now, and the job began on "
                    f"{fingerprint[:12]}. Start it anew."
                )
            shutil.rmtree(kept, ignore_errors=True)
            arriving.rename(kept)
    return open_dataset(kept)


def _fingerprint_at(place: str) -> str:
    try:
        text = storage.read_text(f"{place.rstrip('/')}/{DATASET_FILE}")
    except OSError as error:
        raise DataError(
            f"{place} is not a prepared data set, or cannot be read: {error}. "
            f"Copy there what prepare.py wrote."
        ) from error
    return str(json.loads(text)["fingerprint"])
