"""Caches scan records, so that a file that has not changed is not read again."""

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import pandas as pd
import pyarrow

from drone.data.prepare.listing import RawFile
from drone.data.prepare.scan import UNREADABLE, ScanRecord
from drone.serving.preprocess import Preprocessing, reads_heic

_VERSION = 3
"""Raised whenever `scan_file` gives another record for the same bytes."""

_KEY = ("path", "size_bytes", "change_token")

_LISTED = ("root", "class_name", "kind")
"""Fields of a record that depend on how the root is named and read, not on the file."""


class ScanCache:
    """Records of earlier scans, in one parquet file for each root and set of limits.

    A file counts as unchanged if its path, its size, its times and its inode (in an archive: its
    checksum) are the same. A damaged or missing cache only costs a scan.
    """

    def __init__(self, folder: Path, settings: Preprocessing) -> None:
        """Opens the cache.

        Args:
            folder: Local folder; created when it is first written to.
            settings: Limits of the scan. Other limits have another cache.
        """
        limits = (settings.max_bytes, settings.max_pixels, settings.min_side_px)
        # Files that could not be read are read once the package for them is installed.
        self._salt = f"{_VERSION} {limits} {reads_heic()}"
        self._folder = folder

    def lookup(self, files: Sequence[RawFile]) -> dict[RawFile, ScanRecord]:
        """Returns the records of those files that have not changed."""
        names = [field.name for field in fields(ScanRecord) if field.name not in _LISTED]
        cached: dict[RawFile, ScanRecord] = {}
        for root, files_of_root in _by_root(files).items():
            try:
                frame = pd.read_parquet(self._cache_file(root))
                keys = zip(*(frame[f"listed_{name}"] for name in _KEY), strict=True)
                rows = dict(zip(keys, frame[names].to_dict("records"), strict=True))
            except (OSError, ValueError, KeyError, pyarrow.ArrowException):
                continue
            for file in files_of_root:
                row = rows.get(tuple(getattr(file, name) for name in _KEY))
                if row is not None:
                    listed = {name: getattr(file, name) for name in _LISTED}
                    cached[file] = ScanRecord(**row, **listed)
        return cached

    def store(self, records: Mapping[RawFile, ScanRecord]) -> None:
        """Replaces the cached records of these roots; does nothing if the disk is not writable."""
        with contextlib.suppress(OSError):
            self._store(records)

    def _store(self, records: Mapping[RawFile, ScanRecord]) -> None:
        for root, files_of_root in _by_root(list(records)).items():
            rows = [
                {**asdict(records[file]), **{f"listed_{n}": getattr(file, n) for n in _KEY}}
                for file in files_of_root
                # An unreadable file may be readable next time without a change of its own.
                if file.change_token and records[file].problem != UNREADABLE
            ]
            target = self._cache_file(root)
            temporary = target.with_suffix(f".{os.getpid()}.tmp")
            target.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).to_parquet(temporary, index=False)
            temporary.rename(target)

    def _cache_file(self, root: str) -> Path:
        location = root if "://" in root else str(Path(root).resolve())
        name = hashlib.sha256(f"{self._salt} {location}".encode()).hexdigest()[:32]
        return self._folder / f"{name}.parquet"


def _by_root(files: Sequence[RawFile]) -> dict[str, list[RawFile]]:
    by_root: dict[str, list[RawFile]] = {}
    for file in files:
        by_root.setdefault(file.root, []).append(file)
    return by_root
