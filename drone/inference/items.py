"""The unit of work: one file, with the boxes to classify in it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from drone.data.prepare.roots import join_root, on_disk
from drone.inference.boxes import Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An image or a clip: what is predicted as a whole, or not yet."""

    root: str
    """Folder, archive or URI that the file is in."""

    name: str
    """Path of the file below the root, with forward slashes."""

    change_token: str = ""
    """Differs when the content does; see `drone.data.prepare.roots.Entry`."""

    boxes: tuple[Box, ...] = ()
    """What is classified in the file; empty for all of it."""

    sequence: str = ""
    """Folder of numbered images that the image is a frame of; empty for any other."""

    frame: int | None = None
    """Number of the frame in its sequence; None for any other image."""

    time_s: float | None = None
    """Time of the frame in seconds; None for any other image."""

    @property
    def path(self) -> str:
        """Path or URI of the file."""
        return join_root(self.root, self.name)

    @property
    def key(self) -> str:
        """32 hexadecimal digits that differ between items, and after a change of the content."""
        boxes = [(box.x, box.y, box.w, box.h, box.track, box.frame) for box in self.boxes]
        parts = (self.path, self.change_token, boxes, self.frame)
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    @property
    def local_file(self) -> Path | None:
        """The file on this machine; None if it is in an archive or in object storage."""
        folder = on_disk(Path(self.root))
        return None if "://" in self.root or not folder.is_dir() else on_disk(Path(self.path))
