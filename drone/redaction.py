"""Removes passwords and keys from text that is shown or stored."""

import re

_MASK = "***"

# The lengths are bounded, or long texts would take quadratic time. S3 first: its secret keys may
# hold slashes, and a bucket has no port.
_CREDENTIALS = (
    re.compile(r"(?i)\b(s3[an]?://)[^\s/:@\"'<>]{1,2000}:[^\s@\"'<>]{0,2000}@"),
    re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,20}://)[^\s/?#\"'<>]{0,2000}@"),
    # A slash in a password that was not encoded; `host:5000/path@2` is none.
    re.compile(
        r"(?i)\b([a-z][a-z0-9+.-]{0,20}://)"
        r"[^\s/?#:@\[\"'<>]{1,2000}:(?!\d{1,5}(?:\W|$))[^\s@\"'<>]{0,2000}@"
    ),
)
_PARAMETER = re.compile(
    r"(?i)([?&;](?:[\w.-]{0,40}(?:secret|token|passw|signature|credential|access[_-]?key)[\w.-]{0,40}"
    r"|(?:api[_-]?)?key|sig|pwd)=)[^\s&;#\"'<>]+"
)


def redact(text: str) -> str:
    """Returns the text with a mask for the credentials in its URIs.

    These are user and password before a host or bucket (http://user:password@host), and secrets
    in a query (?secret_key=...).
    """
    for pattern in _CREDENTIALS:
        text = pattern.sub(rf"\g<1>{_MASK}@", text)
    return _PARAMETER.sub(rf"\g<1>{_MASK}", text)


def without_mask(location: str) -> str:
    """Returns a stored location as it can be opened: with the credentials of the environment."""
    return location.replace(f"://{_MASK}@", "://")
