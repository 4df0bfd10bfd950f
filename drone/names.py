"""Names that come from users, files and folders: which are allowed, and how they are shown."""

import hashlib
import re
from collections.abc import Collection
from itertools import islice

from drone.errors import ConfigError

_MAX_LENGTH = 200
"""MLflow and file systems take at most 250 to 255 characters, and suffixes are added."""

_NOT_IN_FILE_NAMES = re.compile(r"[^\w.-]+")
_NOT_IN_KEYS = re.compile(r"[^\w .-]")

MAX_KEY_LENGTH = 200
"""Characters of a name that `key` has encoded; MLflow takes 250, with the prefix of the metric."""

_MAX_SHORT_KEY = 60

_MAX_PART_BYTES = 80
"""Bytes that a name may take of a file's name, of which file systems allow 255."""

_MAX_LISTED = 10
"""Names that a message lists."""


def printable(text: str) -> str:
    r"""Returns a text on one line, with control characters and the like as escapes: `\n`, `\x1b`.

    A name may hold anything. Printed as it is, it could forge a line or move the cursor; a lone
    surrogate (a file name that is not UTF-8) could not be printed at all.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def storable(text: str) -> str:
    r"""Returns a text as UTF-8 can store it: lone surrogates become escapes, such as `\udce9`.

    They stand for the bytes of a file name that is not UTF-8. No database and no table takes them.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def check_name(name: str, setting: str, forbidden: str = "") -> None:
    """Checks a name that is stored, shown and typed again.

    Args:
        name: The name.
        setting: Where it comes from, for error messages: a flag, for example.
        forbidden: Characters that it must not contain.

    Raises:
        ConfigError: It is empty, too long, or contains what a name cannot.
    """
    shown = f"{setting} is {name[:_MAX_LENGTH]!r}"
    if not name.strip():
        raise ConfigError(f"{shown}; it must not be empty.")
    if len(name.encode("utf-8", "surrogatepass")) > _MAX_LENGTH:
        raise ConfigError(f"{shown} ...; it may have at most {_MAX_LENGTH} bytes.")
    if not name.isprintable():
        raise ConfigError(f"{shown}; it must not contain control characters or line breaks.")
    # Later commands take the name as an argument, which would be read as a flag.
    if name.startswith("-"):
        raise ConfigError(f"{shown}; it must not start with a dash.")
    used = [letter for letter in forbidden if letter in name]
    if used:
        raise ConfigError(f"{shown}; it must not contain {' or '.join(map(repr, used))}.")


def check_folder_name(name: str, setting: str) -> None:
    """Checks a name that becomes a folder, which must not lie outside of its parent.

    Raises:
        ConfigError: It is no name (see `check_name`), or a path.
    """
    check_name(name, setting, forbidden="/\\")
    if name.startswith("."):
        raise ConfigError(f"{setting} is {name!r}; it must not start with a dot.")


def check_model_name(name: str, setting: str) -> None:
    """Checks the name of a registered model.

    Raises:
        ConfigError: It is no name (see `check_name`), or not one that a URI can hold.
    """
    # In models:/NAME@ALIAS and models:/NAME/VERSION these would end the name.
    check_name(name, setting, forbidden="/\\:@%")
    if name.startswith("."):
        raise ConfigError(f"{setting} is {name!r}; it must not start with a dot.")


def key(name: str) -> str:
    """Returns a name as part of the name of a metric or an artifact; different ones stay different.

    Letters, digits, spaces, dots, dashes and underscores stay. Any other character becomes its code
    point between colons: `Birds & bats` -> `Birds :26: bats`. MLflow takes nothing else.
    """
    return _NOT_IN_KEYS.sub(lambda found: f":{ord(found[0]):x}:", name)


def short_key(name: str) -> str:
    """Returns `key` of a name; one that becomes long is cut, and ends in its checksum."""
    encoded = key(name)
    if len(encoded) <= _MAX_SHORT_KEY:
        return encoded
    return f"{encoded[:_MAX_SHORT_KEY]}-{hashlib.sha256(encoded.encode()).hexdigest()[:8]}"


def file_name(name: str) -> str:
    """Returns a name as part of a file's name: letters, digits, dots, dashes and underscores.

    It has at most 80 bytes. Different names may become the same.
    """
    part = _NOT_IN_FILE_NAMES.sub("_", name).lstrip(".-")
    # File systems count bytes, and a letter has up to four. One that is cut through is dropped.
    return part.encode()[:_MAX_PART_BYTES].decode(errors="ignore")


def listed(names: Collection[str]) -> str:
    """Returns names as a message lists them; of more than ten the first, and how many more."""
    shown = ", ".join(islice(names, _MAX_LISTED))
    num_more = len(names) - _MAX_LISTED
    return f"{shown} and {num_more} more" if num_more > 0 else shown
