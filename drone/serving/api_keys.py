"""API keys in a file: each has a name, and a changed file counts without a restart."""

import hashlib
import hmac
import logging
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drone.errors import ConfigError

_MIN_LENGTH = 16
"""Characters of a key. A shorter one could be guessed, or be the start of a line that is just being
written."""

_LINE = re.compile(r"([A-Za-z0-9._-]{1,64})(?:\s*:\s*|\s+)([!-~]+)")

_BEARER = re.compile(r"bearer +", re.IGNORECASE)

_HOW_TO = "Write one NAME KEY on each line; lines that begin with # are comments."

_log = logging.getLogger("drone.http")


@dataclass(frozen=True)
class _Key:
    name: str

    digest: bytes
    """SHA-256 of the key: of one length for all, and not the key itself."""


class ApiKeys:
    """The keys of a file, which is read again when it has changed."""

    def __init__(self, file: Path) -> None:
        """Reads the file.

        Raises:
            ConfigError: It cannot be read, or is not a list of keys.
        """
        self._file = file
        # Before the content: what is written in between is read again.
        self._state = _state(file)
        self._keys = _read_keys(file)

    def name_of(self, headers: Mapping[str, str]) -> str | None:
        """Returns the name of the key that a request has; None for no key and for an unknown one.

        Args:
            headers: Values by header name in lower case.
        """
        self._refresh()
        digest = _digest(key_in(headers))
        found = None
        # Through all keys, however early one matches: the time tells nothing of them.
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key.name
        return found

    def _refresh(self) -> None:
        """Reads a file that has changed; one that is no list of keys changes nothing."""
        state = _state(self._file)
        if state == self._state:
            return
        self._state = state
        try:
            self._keys = _read_keys(self._file)
        except ConfigError as error:
            _log.error("The API keys stay as they were. %s", error)
        else:
            _log.info("The API keys were read again; there are %d.", len(self._keys))


def key_in(headers: Mapping[str, str]) -> str:
    """Returns the key in the headers of a request, by name in lower case; empty without one."""
    authorization = headers.get("authorization", "")
    if scheme := _BEARER.match(authorization):
        return authorization[scheme.end() :].strip()
    return headers.get("x-api-key", "").strip()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _state(file: Path) -> tuple[int, int, int, int] | None:
    """Returns what differs between two versions of a file; None if there is no file.

    The third is the time of a change of the owner or of permissions too: a file that could not be
    read is read again when it can be.
    """
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ctime_ns, found.st_ino


def _read_keys(file: Path) -> tuple[_Key, ...]:
    """Reads a file of keys; no message quotes any of it.

    Raises:
        ConfigError: It cannot be read, or is not a list of keys.
    """
    try:
        lines = file.read_text("utf-8").splitlines()
        is_open = bool(file.stat().st_mode & stat.S_IROTH)
    except OSError as error:
        raise ConfigError(f"The API keys {file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The API keys {file} are not UTF-8 text. {_HOW_TO}") from error
    if is_open:
        _log.warning("Every user of this machine can read %s; restrict it by chmod 600.", file)
    keys: dict[bytes, _Key] = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            key = _parse(line.strip(), f"Line {number} of the API keys {file}")
            if key.name != keys.setdefault(key.digest, key).name:
                raise ConfigError(f"Line {number} of the API keys {file} has the key of another.")
    if not keys:
        raise ConfigError(f"There are no API keys in {file}. {_HOW_TO}")
    return tuple(keys.values())


def _parse(line: str, where: str) -> _Key:
    match = _LINE.fullmatch(line)
    if not match:
        raise ConfigError(
            f"{where} is not a name and a key. {_HOW_TO} A name has at most 64 letters, digits, "
            f"dots, dashes and underscores."
        )
    if len(match[2]) < _MIN_LENGTH:
        raise ConfigError(
            f"{where} has a key of {len(match[2])} characters; it must have at least "
            f"{_MIN_LENGTH}. This makes one: openssl rand -hex 32"
        )
    return _Key(match[1], _digest(match[2]))
