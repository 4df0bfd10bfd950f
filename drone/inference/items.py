"""The unit of work: one image, or one frame or box of a file."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from drone.data.prepare.roots import join_root, on_disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What gets one prediction."""

    root: str
    """Folder, archive or URI that the file is in."""

    name: str
    """Path of the file below the root, with forward slashes."""

    change_token: str = ""
    """Differs when the content does; see `drone.data.prepare.roots.Entry`."""

    frame: int | None = None
    """Number of a clip's frame, from 0; None for an image."""

    time_s: float | None = None
    """Time of the frame in seconds; None for an image."""

    box: tuple[float, float, float, float] | None = None
    """Left and top edge, width and height in pixels of what is classified; None for all of it."""

    track: str | None = None
    """Name of the object that boxes follow through a clip; None without one."""

    @property
    def path(self) -> str:
        """Path or URI of the file."""
        return join_root(self.root, self.name)

    @property
    def key(self) -> str:
        """32 hexadecimal digits that differ between items, and after a change of the content."""
        parts = (self.path, self.change_token, self.frame, self.box, self.track)
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    @property
    def local_file(self) -> Path | None:
        """The file on this machine; None if it is in an archive or in object storage."""
        folder = on_disk(Path(self.root))
        return None if "://" in self.root or not folder.is_dir() else on_disk(Path(self.path))
