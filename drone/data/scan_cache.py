"""What earlier scans saw, so that a file that has not changed is not read again."""

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import pandas as pd
import pyarrow

from drone.data.scan import UNREADABLE, Record, Source
from drone.serving.preprocess import Preprocessing

_VERSION = 1
"""Raised whenever `scan_file` sees something else in the same bytes."""

_KEY = ("path", "size_bytes", "changed")


class ScanCache:
    """Records of earlier scans: a parquet file for each root and limits, replaced as a whole.

    A file counts as unchanged if its path, size and time of change (of an archive: checksum) are
    what they were. A damaged or missing cache only costs a scan.
    """

    def __init__(self, folder: Path, settings: Preprocessing) -> None:
        """Args: folder of this machine, made when it is needed; settings of the scan."""
        limits = (settings.max_bytes, settings.max_pixels, settings.min_side_px)
        self._salt = f"{_VERSION} {limits}"
        self._folder = folder

    def known(self, sources: Sequence[Source]) -> dict[Source, Record]:
        """Records of those sources that have not changed."""
        names = [field.name for field in fields(Record)]
        found: dict[Source, Record] = {}
        for root, own in _by_root(sources).items():
            try:
                frame = pd.read_parquet(self._file(root))
                keys = zip(*(frame[f"listed_{name}"] for name in _KEY), strict=True)
                rows = dict(zip(keys, frame[names].to_dict("records"), strict=True))
            except (OSError, ValueError, KeyError, pyarrow.ArrowException):
                continue
            for source in own:
                row = rows.get(tuple(getattr(source, name) for name in _KEY))
                if row is not None:
                    told = {"root": root, "class_name": source.class_name}
                    found[source] = Record(**{**row, **told})
        return found

    def keep(self, seen: Sequence[tuple[Source, Record]]) -> None:
        """Replaces what was kept of these roots; a disk that cannot be written keeps nothing."""
        with contextlib.suppress(OSError):
            self._keep(dict(seen))

    def _keep(self, records: Mapping[Source, Record]) -> None:
        for root, own in _by_root(list(records)).items():
            rows = [
                {**asdict(records[source]), **{f"listed_{n}": getattr(source, n) for n in _KEY}}
                for source in own
                if source.changed and records[source].problem != UNREADABLE
            ]
            file = self._file(root)
            temporary = file.with_suffix(f".{os.getpid()}.tmp")
            file.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).to_parquet(temporary, index=False)
            temporary.rename(file)

    def _file(self, root: str) -> Path:
        place = root if "://" in root else str(Path(root).resolve())
        name = hashlib.sha256(f"{self._salt} {place}".encode()).hexdigest()[:32]
        return self._folder / f"{name}.parquet"


def _by_root(sources: Sequence[Source]) -> dict[str, list[Source]]:
    found: dict[str, list[Source]] = {}
    for source in sources:
        found.setdefault(source.root, []).append(source)
    return found
