"""The checkout that this program runs from."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""Folder of the project, which every worker needs on its import path."""


def user_cache() -> Path:
    """Returns the folder of this machine's caches, unless a setting names another."""
    return Path.home() / ".cache" / "drone"


def commit() -> str:
    """The git commit of the checkout, or "unknown" outside of one."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
