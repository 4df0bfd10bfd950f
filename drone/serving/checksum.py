"""Checksums of exported models: the file that is loaded must be the one that was evaluated."""

import hashlib
import json
from pathlib import Path

from drone.errors import RunError

INFO_FILE = "model.json"
"""File beside an exported model; its "sha256" has the checksum of each model by file name."""


def file_sha256(file: Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_sha256(file: Path, expected: str, owner: str, advice: str) -> None:
    """Checks that a file is the one that was stored.

    Args:
        file: The file.
        expected: SHA-256, hexadecimal.
        owner: What the file belongs to, for the error message.
        advice: What to do if it is another one.

    Raises:
        RunError: It is another one.
    """
    found = file_sha256(file)
    if found != expected:
        raise RunError(
            f"{owner} has the checksum {expected[:12]}, but its file {file.name} has "
            f"{found[:12]}: the file was damaged or replaced. {advice}"
        )


def check_exported(onnx: Path) -> None:
    """Checks an exported model against the model.json beside it; does nothing without one.

    Raises:
        RunError: The model is not the one that model.json describes, or that is damaged.
    """
    info = onnx.with_name(INFO_FILE)
    if not info.is_file():
        return
    advice = "Export the model again: python ray_jobs/export.py --run RUN --out FOLDER"
    try:
        expected = json.loads(info.read_text("utf-8"))["sha256"].get(onnx.name)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{info} beside the model is damaged: it has no checksums ({type(error).__name__}). "
            f"{advice}"
        ) from error
    # A copy under another name is not described there.
    if expected is not None:
        check_sha256(onnx, str(expected), f"The model of {info}", advice)
