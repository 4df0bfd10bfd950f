"""Parts of views on a local disk, shared by all processes of a machine.

    FOLDER/<view>/facts.json             what decides the content; <view> is its checksum
    FOLDER/<view>/cut-14/00003.bin       activations of 128 images, then their checksum
    FOLDER/<view>/00003.lock             held by the process that computes this part

A part is written under another name and renamed, so one that exists is complete; it is verified
when it is opened, and computed again if it is damaged. Locks end with their process. Axes: N
images, C channels, H and W positions.
"""

import contextlib
import fcntl
import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drone.project import user_cache
from drone.training.activation_cache.keys import View

_STALE_S = 3600.0
"""A part is written in seconds: one that is incomplete after this will never be completed."""

_MAGIC = b"drone-features-1"
_TRAILER = len(_MAGIC) + 4


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """Where activations are cached, and which."""

    folder: Path = field(default_factory=lambda: user_cache() / "activations")
    """On a local disk; all trials of a machine share it."""

    disk_gb: float = 10.0
    """Maximum size in 10^9 bytes; the least recently read parts are evicted first."""

    cuts: tuple[int, ...] = ()
    """Cuts that other trials will read: a pass stores these beside its own."""


class ActivationStore:
    """Parts of views on disk, within a budget."""

    def __init__(self, folder: Path, disk_gb: float) -> None:
        """Uses a folder, which is created with the first part."""
        self.folder = folder
        self.budget_bytes = int(disk_gb * 1e9)

    def describe(self, view: View, facts: Mapping[str, Any]) -> None:
        """Writes down what a view is, for whoever looks into the folder."""
        file = self.folder / view.name / "facts.json"
        with contextlib.suppress(OSError):  # A full disk: nothing depends on this file.
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                _write_atomically(file, [json.dumps(dict(facts), indent=1).encode()])

    def read(self, view: View, cut: int, part: int, row: tuple[int, ...]) -> Tensor | None:
        """A part as memory-mapped tensor, (N, *row), or None if it is missing or damaged.

        Args:
            view: View of the images.
            cut: Cut at which the activations are taken.
            part: Number of the part.
            row: Shape of an image's activation as it is stored, (H, W, C) or (C,), then 2 or 4
                for the bytes of a value.
        """
        file = self._file(view, cut, part)
        shape = (len(view.positions(part)), *row)
        size = int(np.prod(shape))
        try:
            if file.stat().st_size != size + _TRAILER:
                raise ValueError
            # Copy-on-write, since torch warns about read-only memory. The file never changes.
            content = np.memmap(file, np.uint8, "c")
            trailer = content[size:].tobytes()
            if trailer != _MAGIC + zlib.crc32(content[:size].data).to_bytes(4, "little"):
                raise ValueError
            with contextlib.suppress(OSError):  # It may belong to another user.
                os.utime(file)  # The modification time orders eviction.
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
            return None
        return _typed(torch.from_numpy(content[:size]), shape)

    def write(self, view: View, cut: int, part: int, rows: Tensor) -> bool:
        """Stores a part, (N, *row) of bfloat16 or float32; evicts others first if necessary.

        Returns:
            Whether it was stored: not if it is larger than the budget or the disk is full.
        """
        # As bytes: numpy has no bfloat16.
        content = rows.contiguous().view(torch.uint8).numpy().reshape(-1)
        if not self._make_room(content.nbytes):
            return False
        file = self._file(view, cut, part)
        checksum = _MAGIC + zlib.crc32(content.data).to_bytes(4, "little")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            _write_atomically(file, [content.data, checksum])
        except OSError:
            return False
        return True

    @contextlib.contextmanager
    def claim(self, view: View, part: int, wait: bool) -> Iterator[bool]:
        """The exclusive right to compute a part, while the block runs; yields whether it was got.

        Args:
            view: View of the images.
            part: Number of the part.
            wait: Whether to wait for the process that has it; otherwise yields False at once.
        """
        folder = self.folder / view.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / f"{part:05d}.lock").open("w")
        except OSError:  # A full disk stores nothing, so there is nothing to share either.
            yield True
            return
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True

    def has_all(self, view: View, cut: int, parts: Iterable[int]) -> bool:
        """Whether all of these parts exist (their content is verified when they are read)."""
        return all(self._file(view, cut, part).exists() for part in parts)

    def size_bytes(self) -> int:
        """Total size of all parts."""
        return sum(size for _, size, _ in self._parts())

    def _file(self, view: View, cut: int, part: int) -> Path:
        return self.folder / view.name / f"cut-{cut:02d}" / f"{part:05d}.bin"

    def _parts(self) -> list[tuple[float, int, Path]]:
        """Time of last use, size and file of each part, the least recently used first."""
        parts = []
        for file in self.folder.glob("*/cut-*/*.bin"):
            try:
                status = file.stat()
            except OSError:
                continue  # Another process has evicted it.
            parts.append((status.st_mtime, status.st_size, file))
        return sorted(parts)

    def _make_room(self, num_bytes: int) -> bool:
        """Evicts parts until a new one fits the budget; whether it does."""
        if num_bytes > self.budget_bytes:
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
                if total + num_bytes <= self.budget_bytes:
                    break
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)  # A process that has it mapped keeps reading it.
                    total -= size
        return total + num_bytes <= self.budget_bytes

    def _remove_stale(self) -> None:
        """Removes what killed writers have left."""
        for file in self.folder.glob("*/cut-*/.*.bin.*"):
            with contextlib.suppress(OSError):
                if time.time() - file.stat().st_mtime > _STALE_S:
                    file.unlink()


def _write_atomically(file: Path, contents: list[Any]) -> None:
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
