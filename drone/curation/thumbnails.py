"""Thumbnails of raw files, embedded in the pages."""

from drone.data.embed import jpeg_data_uri
from drone.data.prepare.roots import Opener
from drone.errors import DataError, ImageError
from drone.serving.preprocess import Preprocessing, decode_reduced, open_header


def thumbnail(root: str, path: str, settings: Preprocessing, opener: Opener, side_px: int) -> str:
    """Returns a small JPEG of a file as a data URI; empty if the file cannot be read.

    Args:
        root: Name of the raw folder, archive or URI.
        path: Path of the file below it.
        settings: Preprocessing, whose limits on the file's size apply.
        opener: Opens the root.
        side_px: Maximum width and height.
    """
    try:
        data = opener(root).read(path, settings.max_bytes)
        image = decode_reduced(open_header(data, settings), side_px)
    # Raw files may have moved since the scan; a page without one image is better than no page.
    except (OSError, ImageError, DataError):
        return ""
    image.thumbnail((side_px, side_px))
    return jpeg_data_uri(image)
