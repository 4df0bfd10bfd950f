"""Images that arrive as text: data URLs and base64, from browsers, command lines and JSON."""

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

HOW_TO = (
    "Send the bytes of the image file themselves (curl --data-binary @image.jpg), a form with the "
    'file "image", or JSON {"image": "..."} with base64 or a data URL.'
)

_DATA_URL = re.compile(rb"data:([^,]{0,200}),", re.IGNORECASE)
_BASE64 = re.compile(rb"[A-Za-z0-9+/_\-\s]+=*\s*")
_WHITESPACE = b" \t\n\r\v\f"
_MIN_BYTES = 16
"""Characters below which a body is no encoded image."""


def decode_text(text: bytes) -> bytes:
    """Returns the content of a data URL or of base64.

    Base64 may be wrapped, URL-safe, without padding, percent-encoded or in quotes.

    Raises:
        ValueError: The text is neither.
    """
    text = text.strip(_WHITESPACE + b"\"'")
    url = _DATA_URL.match(text)
    if url:
        text = text[url.end() :]
        if not url[1].lower().replace(b" ", b"").endswith(b";base64"):
            return unquote_to_bytes(text)
    if b"%" in text:
        text = unquote_to_bytes(text)
    # As bytes: a list of what `split` leaves could take twenty times the memory.
    text = text.translate(bytes.maketrans(b"-_", b"+/"), _WHITESPACE).rstrip(b"=")
    try:
        # Strict: by default Python skips what is not base64, and decodes the rest.
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"it is not valid base64 ({error})") from error


def decode_if_text(body: bytes) -> bytes:
    """Returns the image in a body that may be a data URL or base64; other bodies as they are."""
    if _DATA_URL.match(body.lstrip(_WHITESPACE + b"\"'")[:300]):
        return decode_text(body)
    # A plain PPM is text as well, of numbers.
    is_number = re.match(rb"P[1-6]\s", body)
    if len(body) < _MIN_BYTES or is_number or not _BASE64.fullmatch(body.strip(b"\"'")):
        return body
    try:
        return decode_text(body)
    except ValueError:
        return body
