"""Recognises files that show something but are not read here, and says how to convert them."""

import re
from collections.abc import Callable

from drone.errors import ImageError
from drone.serving.jpeg_segments import FRAMES, SCAN, segments
from drone.serving.tiff_directories import Directory, directories, sub_directories

_MAGICK = "magick FILE image.jpg"

HEIC = "HEIC"

_COMMANDS = {
    HEIC: "heif-convert FILE image.jpg",
    "JPEG XL": "djxl FILE image.jpg",
    "Photoshop": "magick FILE[0] image.jpg",
    "GIMP": "magick FILE -flatten image.jpg",
    "SVG": "rsvg-convert FILE -o image.png",
    "PDF": "pdftoppm -jpeg FILE image",
    "PostScript": "gs -dSAFER -sDEVICE=jpeg -r150 -o image.jpg FILE",
    "DjVu": "ddjvu -format=tiff FILE image.tif",
    "DICOM": "dcm2img FILE image.jpg",
    "camera raw": "dcraw_emu -T FILE",
    "video": "ffmpeg -i FILE -vf fps=1 frame-%04d.jpg",
}
"""Example of a conversion by name of the format, where it is not the usual one."""

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (rb"....ftyp(?:jxl )|\0\0\0\x0cJXL |\xff\x0a", "JPEG XL"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"II\xbc", "JPEG XR"),
    (rb"8BPS", "Photoshop"),
    (rb"gimp xcf", "GIMP"),
    (
        # Atomic: otherwise a file of many comments would be tried in exponentially many ways.
        rb"(?:\xef\xbb\xbf)?\s*+(?>(?:<\?xml[^>]*+>|<!--.*?-->"
        rb"|<!DOCTYPE\s+svg[^\[>]*+(?:\[[^\]]*+\]\s*+)?>)\s*+)*+<(?:\w{1,20}:)?svg[\s>/]",
        "SVG",
    ),
    (rb"%PDF-", "PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
    (rb"AT&TFORM", "DjVu"),
    (rb"\0\0[\x01\x02]\0[^\0]\0|icns", "icon"),
    (rb"\x76\x2f\x31\x01", "OpenEXR"),
    (rb"#\?R(?:ADIANCE|GBE)", "Radiance HDR"),
    (rb"DDS ", "DDS"),
    (rb"qoif", "QOI"),
    (rb"SIMPLE  =", "FITS"),
    (rb".{128}DICM", "DICOM"),
    # Fuji, Olympus, Panasonic, Sigma, Minolta, Canon's two.
    (rb"FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0|FOVb|\0MRM|II\x1a\0\0\0HEAPCCDR", "camera raw"),
    (rb"....ftypcrx |II\*\0.{4}CR", "camera raw"),
    # Matroska and WebM, AVI, Flash, MPEG programme and elementary streams, Ogg, Windows Media.
    (
        rb"\x1a\x45\xdf\xa3|RIFF....AVI |FLV\x01|\0\0\x01[\xba\xb3]|OggS|\x30\x26\xb2\x75\x8e\x66",
        "video",
    ),
    (rb"G.{187}G.{187}G", "video"),
    (rb"\0...(?:moov|mdat|wide|free|skip|pnot)", "video"),
)

_HEIC_BRANDS = frozenset((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_IMAGE_BRANDS = frozenset((b"mif1", b"msf1"))

_LOSSLESS_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF)
"""Markers of a JPEG's frame that is lossless or hierarchical."""

_WIDTH, _BITS, _SAMPLE_FORMAT = 256, 258, 339
_FLOAT = 3
_KNOWN_BITS = (1, 2, 4, 8, 16, 32)
_KNOWN_COMPRESSIONS = (*range(1, 9), 32771, 32773, 32809, 32946, 34676, 34677, 34925, 50000, 50001)

_COMPRESSION, _PHOTOMETRIC, _DNG_VERSION = 259, 262, 50706
_RAW_PHOTOMETRIC = (32803, 34892)
"""Colour filter array and linear raw, of TIFF/EP and DNG."""

_RAW_COMPRESSION = (32767, 32769, 32770, 34713, 65000, 65535)
"""Compressions of Sony, Epson, Samsung, Nikon, Kodak and Pentax."""


def is_heic(data: bytes) -> bool:
    """Whether a file is HEIC, as phones write it."""
    return _name_of_container(data) == HEIC


def check_supported(data: bytes, reads_heic: Callable[[], bool]) -> None:
    """Fails for an image, document or video of a known format that is not read here.

    Args:
        data: Content of the file.
        reads_heic: Returns whether HEIC is read here.

    Raises:
        ImageError: It is one; the message names the format and says how to convert it.
    """
    name = _name_of(data)
    if name is None or (name == HEIC and reads_heic()):
        return
    command = _COMMANDS.get(name, _MAGICK)
    verb = "Extract its images" if name == "video" else "Convert the file to JPEG"
    message = f"{name[0].upper()}{name[1:]} files are not supported. {verb}, for example with "
    message += f"`{command}`"
    if name == HEIC:
        message += ", or install support for it: pip install pillow-heif"
    raise ImageError("unsupported", f"{message}.")


def _name_of(data: bytes) -> str | None:
    if data.startswith((b"\x89PNG", b"GIF8")):
        return None
    if data.startswith(b"\xff\xd8"):
        return _name_of_jpeg(data)
    for signature, name in _SIGNATURES:
        if re.match(signature, data, re.DOTALL):
            return name
    if data[4:8] == b"ftyp":
        return _name_of_container(data)
    if data.startswith((b"II*\0", b"MM\0*")) and _is_raw(data):
        return "camera raw"
    return None


def _name_of_container(data: bytes) -> str | None:
    """Returns the name of an ISO media file; None for AVIF and for other files."""
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4], "big"), 512)
    major, *compatible = [data[8:12], *(data[at : at + 4] for at in range(16, end, 4))]
    if major in _AVIF_BRANDS:
        return None
    if major in _HEIC_BRANDS:
        return HEIC
    if major in _IMAGE_BRANDS:
        return None if _AVIF_BRANDS & set(compatible) else HEIC
    return "video"


def _name_of_jpeg(data: bytes) -> str | None:
    """Returns the name of a kind of JPEG that libjpeg does not decode."""
    for segment in segments(data):
        depth = data[segment.start + 4 : segment.start + 5]
        if segment.code == 0xF7:
            return "JPEG-LS"
        if segment.code in _LOSSLESS_FRAMES:
            return "lossless JPEG"
        if segment.code in FRAMES:
            return None if depth == b"\x08" else f"{depth[0] if depth else 0}-bit JPEG"
        if segment.code == SCAN:
            break
    return None


def check_tiff(data: bytes) -> None:
    """Fails for a TIFF of a kind that Pillow does not know, whose structure is whole.

    Raises:
        ImageError: It is one.
    """
    page = next(directories(data), None) if data.startswith((b"II", b"MM")) else None
    if page is None or not page.values(_WIDTH, data):
        return
    bits, sample_format, compression = (
        page.values(tag, data) for tag in (_BITS, _SAMPLE_FORMAT, _COMPRESSION)
    )
    known_bits = bits == (12,) or all(value in _KNOWN_BITS for value in bits)
    known_compression = all(value in _KNOWN_COMPRESSIONS for value in compression[:1])
    if known_bits and known_compression and _FLOAT not in sample_format:
        return
    kind = f"{'x'.join(map(str, bits))} bits, compression {compression[0] if compression else 1}"
    raise ImageError(
        "unsupported",
        f"TIFF files of this kind ({kind}) are not supported. Convert the file to PNG, for "
        f"example with `magick FILE -depth 8 image.png`.",
    )


def _is_raw(data: bytes) -> bool:
    """Whether a TIFF is a camera's raw file: its first page is then only a preview."""
    for page in directories(data):
        if page.count(_DNG_VERSION):
            return True
        if any(_holds_raw(part, data) for part in (page, *sub_directories(page, data))):
            return True
    return False


def _holds_raw(directory: Directory, data: bytes) -> bool:
    photometric = directory.values(_PHOTOMETRIC, data)[:1]
    compression = directory.values(_COMPRESSION, data)[:1]
    return any(value in _RAW_PHOTOMETRIC for value in photometric) or any(
        value in _RAW_COMPRESSION for value in compression
    )
