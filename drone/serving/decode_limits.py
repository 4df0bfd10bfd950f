"""Limits on the work of decoding, judged by a file's structure before anything is decoded.

The number of pixels does not bound the time: a JPEG may repeat its scans a thousand times, and some
readers of Pillow are loops in Python. A decoder that has begun cannot be interrupted, so a file
that would take it long is rejected first. Ordinary files stay far below each limit.
"""

import os

from PIL import ImageFile

from drone.errors import ImageError
from drone.serving.gif_blocks import gif_blocks
from drone.serving.jpeg_segments import END, SCAN, segments
from drone.serving.tiff_directories import directories

_MAX_SCANS = 100
"""Scans of a JPEG; encoders write 1 to 15. libjpeg-turbo recommends a limit against "progressive
JPEG bombs": https://libjpeg-turbo.org/pmwiki/uploads/About/TwoIssueswiththeJPEGStandard.pdf"""

_MAX_SCANNED_PIXELS = 800_000_000
"""Scans times pixels of a JPEG, each of which takes 1.2 to 1.8 ns."""

_MAX_HEADER_STEPS = 20_000
"""Segments, chunks and fill bytes that Pillow reads one by one in Python."""

_MAX_GIF_BLOCKS = 500_000
"""Blocks of a GIF; they have at most 255 bytes, and Pillow steps over them in Python."""

_MAX_FRAME_PIXELS = 2**28
"""Pixels of a GIF's frame; the limit on those of the image applies as well."""

_MAX_PYTHON_MIB = {"bmp_rle": 5, "ppm": 2, "ppm_plain": 5}
"""File size that takes about a second, by Pillow's names of the decoders written in Python."""

_MAX_PYTHON_PIXELS = 8_000_000
"""Pixels that these decoders write in less than a second, however small the file."""

_MAX_COMMENTS = 1000
"""Comments in a plain PPM; removing each copies the whole block that it is in."""

_MAX_TILES = 20_000
"""Tiles or strips of a TIFF, which Pillow lists and decodes one by one."""

_MAX_TILE_PIXELS = 2**20
"""Pixels of a TIFF's tile, where the image itself has fewer."""

_STRIP_OFFSETS, _TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS = 273, 322, 323, 324
"""Tags of a TIFF."""

# libtiff has its own limit, for a JPEG inside a TIFF.
os.environ.setdefault("LIBTIFF_JPEG_MAX_ALLOWED_SCAN_NUMBER", "16")


def check_header(data: bytes) -> None:
    """Checks what Pillow reads when it opens a file.

    Raises:
        ImageError: Opening the file would take too long.
    """
    if data.startswith(b"\xff\xd8"):
        _check_jpeg_header(data)
    elif data.startswith(b"\x89PNG"):
        _check_png_chunks(data)
    elif data.startswith(b"GIF8"):
        _check_gif_blocks(data)
    elif data.startswith((b"II", b"MM")):
        _check_tiff_tiles(data)


def check_decoding(image: ImageFile.ImageFile, data: bytes) -> None:
    """Checks what Pillow will do when it decodes an opened image.

    Args:
        image: Opened image, not decoded.
        data: Content of its file.

    Raises:
        ImageError: Decoding would take too long.
    """
    pixels = image.width * image.height
    if image.format == "JPEG":
        _check_scans(data, pixels)
    tags = getattr(image, "tag_v2", {})
    tile_pixels = tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_LENGTH, 0)
    if tile_pixels > max(pixels, _MAX_TILE_PIXELS):
        raise _too_slow(f"its tiles of {tile_pixels} pixels are larger than the image")
    max_mib = _MAX_PYTHON_MIB.get(image.tile[0].codec_name) if image.tile else None
    if max_mib is not None:
        _check_python_reader(data, pixels, max_mib)


def _check_jpeg_header(data: bytes) -> None:
    steps = 0
    for segment in segments(data):
        steps += 1 + segment.num_skipped
        if steps > _MAX_HEADER_STEPS:
            raise _too_slow(f"its header has more than {_MAX_HEADER_STEPS} segments")
        if segment.code == SCAN:
            return


def _check_scans(data: bytes, pixels: int) -> None:
    limit = min(_MAX_SCANS, max(1, _MAX_SCANNED_PIXELS // pixels))
    # The markers themselves, which other segments may contain too; counting these is quick.
    if data.count(b"\xff\xda") <= limit:
        return
    scans = 0
    for segment in segments(data):
        scans += segment.code == SCAN
        if scans > limit:
            raise _too_slow(f"it has more than {limit} scans of {pixels / 1e6:.1f} million pixels")
        if segment.code == END:
            return


def _check_png_chunks(data: bytes) -> None:
    position, chunks = 8, 0
    while position + 8 <= len(data):
        chunks += 1
        if chunks > _MAX_HEADER_STEPS:
            raise _too_slow(f"it has more than {_MAX_HEADER_STEPS} chunks")
        position += int.from_bytes(data[position : position + 4], "big") + 12


def _check_gif_blocks(data: bytes) -> None:
    blocks = 0
    for block in gif_blocks(data):
        blocks += 1 + block.num_parts
        # Pillow reserves memory for a frame's rectangle when it opens the file.
        if block.right * block.bottom > _MAX_FRAME_PIXELS:
            raise _too_slow(f"a frame claims {block.right} x {block.bottom} pixels")
        if blocks > _MAX_GIF_BLOCKS:
            raise _too_slow(f"it has more than {_MAX_GIF_BLOCKS} blocks")


def _check_tiff_tiles(data: bytes) -> None:
    for directory in directories(data):
        for tag in (_STRIP_OFFSETS, _TILE_OFFSETS):
            count = directory.count(tag)
            if count > _MAX_TILES:
                raise _too_slow(f"it has {count} tiles or strips; the limit is {_MAX_TILES}")


def _check_python_reader(data: bytes, pixels: int, max_mib: int) -> None:
    if len(data) > max_mib * 2**20 or pixels > _MAX_PYTHON_PIXELS:
        limits = f"{max_mib} MiB and {_MAX_PYTHON_PIXELS / 1e6:g} million pixels"
        raise _too_slow(f"this rare encoding is limited to {limits}; save the image as PNG")
    if data.startswith((b"P1", b"P2", b"P3")) and data.count(b"#") > _MAX_COMMENTS:
        raise _too_slow(f"it has more than {_MAX_COMMENTS} comments")


def _too_slow(cause: str) -> ImageError:
    return ImageError("undecodable", f"The image would take too long to decode: {cause}.")
