"""Generated passwords and tokens, in files that only their owner can read."""

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

RAY_TOKEN = Path("~/.ray/auth_token")
"""Where Ray looks for the token that authenticates the machines of a cluster to each other."""


def read_or_create(file: Path) -> str:
    """Returns the secret that a file holds; a missing file gets a random one of 256 bits.

    The file's permissions become 0600.

    Raises:
        OSError: The file cannot be read or created.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        _create(file)
    # A file of another owner keeps its permissions.
    with contextlib.suppress(PermissionError):
        file.chmod(0o600)
    return file.read_text("utf-8").strip()


def _create(file: Path) -> None:
    # A temporary file has 0600 from the start, and a link never shows half a secret. Of two
    # processes, the first wins.
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w") as target:
            target.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):
            os.link(temporary, file)
    finally:
        temporary.unlink()
