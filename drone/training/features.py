"""Frozen activations, computed once and kept on a local disk.

Below the cut the network is fixed, so its output for a view of a picture is a constant: whoever
needs it first computes it, and later epochs over the same view, later trials and later runs read
it. One pass over a view can keep several cuts.

    FOLDER/<view>/facts.json             what decides the content; <view> is its checksum
    FOLDER/<view>/cut-14/00003.bin       activations of 128 pictures, then their checksum
    FOLDER/<view>/00003.lock             held by the process that computes this part

A part is written under another name and renamed, so one that exists is whole; it is checked again
when it is opened, and computed anew if it is damaged. Locks end with their process. Axes: N
pictures, C channels, H and W positions.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SCHEMA = 1
"""Raised whenever another version of this program could mean something else by a part."""

PART_ROWS = 128
"""Pictures in a part: small enough for two trials to share the work of a view."""

_STALE_S = 3600.0
"""A part is written in seconds: one that is not whole after this never will be."""

_MAGIC = b"drone-features-1"
_TRAILER = len(_MAGIC) + 4


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """Where activations are kept and which are worth keeping."""

    folder: Path
    """On a local disk; all trials of a node share it."""

    disk_gb: float
    """The most that is kept, in 10^9 bytes; what was not read for longest goes first."""

    cuts: tuple[int, ...] = ()
    """Cuts that others will ask for: a pass keeps these beside its own."""


@dataclass(frozen=True)
class View:
    """A view of all pictures of a split, by what decides it."""

    name: str
    count: int

    @staticmethod
    def of(facts: Mapping[str, Any], count: int) -> "View":
        """The view of these facts, which must decide every number in it."""
        text = json.dumps({"schema": SCHEMA, **facts}, sort_keys=True)
        return View(hashlib.sha256(text.encode()).hexdigest()[:32], count)

    @property
    def num_parts(self) -> int:
        """How many files it takes at each cut."""
        return -(-self.count // PART_ROWS)

    def positions(self, part: int) -> NDArray[np.int64]:
        """Which pictures of the split are in a part."""
        return np.arange(part * PART_ROWS, min((part + 1) * PART_ROWS, self.count))


class FeatureStore:
    """Parts of views on disk, within a budget."""

    def __init__(self, folder: Path, disk_gb: float) -> None:
        """Uses a folder, which is made when the first part is kept."""
        self.folder = folder
        self.budget_bytes = int(disk_gb * 1e9)

    def describe(self, view: View, facts: Mapping[str, Any]) -> None:
        """Writes down what a view is, for a person who looks into the folder."""
        file = self.folder / view.name / "facts.json"
        with contextlib.suppress(OSError):  # No room for it: nothing depends on it.
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                _write_whole(file, [json.dumps(dict(facts), indent=1).encode()])

    def read(self, view: View, cut: int, part: int, row: tuple[int, ...]) -> Tensor | None:
        """A part as memory-mapped tensor, (N, *row), or None if it is not there or damaged.

        Args:
            view: whose part.
            cut: at which the activations are wanted.
            part: its number.
            row: shape of a picture's activation as it is kept, (H, W, C) or (C,), then 2 or 4
                for the bytes of a value.
        """
        file = self._file(view, cut, part)
        shape = (len(view.positions(part)), *row)
        size = int(np.prod(shape))
        try:
            if file.stat().st_size != size + _TRAILER:
                raise ValueError
            content = np.memmap(file, np.uint8, "c")
            trailer = content[size:].tobytes()
            if trailer != _MAGIC + zlib.crc32(content[:size].data).to_bytes(4, "little"):
                raise ValueError
            with contextlib.suppress(OSError):  # It may be another user's, or not to be changed.
                os.utime(file)  # What is read stays longest.
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
            return None
        return _typed(torch.from_numpy(content[:size]), shape)

    def write(self, view: View, cut: int, part: int, rows: Tensor) -> bool:
        """Keeps a part, (N, *row) of bfloat16 or float32; makes room for it first.

        Returns:
            Whether it is kept: not if it is larger than the budget or the disk is full.
        """
        content = rows.contiguous().view(torch.uint8).numpy().reshape(-1)
        if not self._make_room(content.nbytes):
            return False
        file = self._file(view, cut, part)
        checksum = _MAGIC + zlib.crc32(content.data).to_bytes(4, "little")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(file, [content.data, checksum])
        except OSError:
            return False
        return True

    @contextlib.contextmanager
    def claim(self, view: View, part: int, wait: bool) -> Iterator[bool]:
        """The right to compute a part, for as long as the block runs.

        Args:
            view: whose part.
            part: its number.
            wait: until whoever has it now is done; else the right may be refused.
        """
        folder = self.folder / view.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / f"{part:05d}.lock").open("w")
        except OSError:  # A full disk keeps nothing, so there is nothing to share either.
            yield True
            return
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True

    def has_all(self, view: View, cut: int) -> bool:
        """Whether every part is there (its content is checked when it is read)."""
        return all(self._file(view, cut, part).exists() for part in range(view.num_parts))

    def size_bytes(self) -> int:
        """What all parts take."""
        return sum(size for _, size, _ in self._parts())

    def _file(self, view: View, cut: int, part: int) -> Path:
        return self.folder / view.name / f"cut-{cut:02d}" / f"{part:05d}.bin"

    def _parts(self) -> list[tuple[float, int, Path]]:
        """When each part was used last, its size and its file; the oldest first."""
        found = []
        for file in self.folder.glob("*/cut-*/*.bin"):
            try:
                status = file.stat()
            except OSError:
                continue  # Another process made room.
            found.append((status.st_mtime, status.st_size, file))
        return sorted(found)

    def _make_room(self, wanted: int) -> bool:
        if wanted > self.budget_bytes:
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "room.lock").open("w")
        except OSError:
            return False
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._remove_stale()
            parts = self._parts()
            total = sum(size for _, size, _ in parts)
            for _, size, file in parts:
                if total + wanted <= self.budget_bytes:
                    break
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)  # Whoever has it mapped keeps reading it.
                    total -= size
        return total + wanted <= self.budget_bytes

    def _remove_stale(self) -> None:
        """Removes what writers that were killed have left."""
        for file in self.folder.glob("*/cut-*/.*.bin.*"):
            with contextlib.suppress(OSError):
                if time.time() - file.stat().st_mtime > _STALE_S:
                    file.unlink()


def _write_whole(file: Path, contents: list[Any]) -> None:
    """Writes a file under another name and renames it."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            for content in contents:
                stream.write(content)
        temporary.rename(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _typed(content: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Bytes as the numbers they are: bfloat16 where the last axis has 2, float32 where 4."""
    dtype = {2: torch.bfloat16, 4: torch.float32}[shape[-1]]
    return content.view(dtype).view(shape[:-1])
