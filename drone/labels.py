"""The four classes: their names and order, and how folder names are matched to them."""

from collections.abc import Sequence
from difflib import get_close_matches

CLASSES = ("Flying Birds", "Large QuadCopters", "Small QuadCopters", "Winged Drones")
"""Class names in the order of their indices."""

SHORT = {
    "Flying Birds": "FB",
    "Large QuadCopters": "LQC",
    "Small QuadCopters": "SQC",
    "Winged Drones": "WD",
}
"""Abbreviations for tables and plots."""

BIRD = "Flying Birds"
"""The one class that is not a drone."""


def normalised(name: str) -> str:
    """Returns the letters and digits of a name in lower case: `Flying_Birds` -> `flyingbirds`."""
    return "".join(character for character in name.lower() if character.isalnum())


def match_class(folder: str, classes: Sequence[str] = CLASSES) -> str | None:
    """Returns the class that a folder name stands for, or None.

    Case, spaces, punctuation and a plural s are ignored.
    """
    stem = normalised(folder).removesuffix("s")
    return next((name for name in classes if normalised(name).removesuffix("s") == stem), None)


def nearest(name: str, allowed: Sequence[str]) -> str | None:
    """Returns the allowed name closest to a misspelt one, for "did you mean"; None without one."""
    matches = get_close_matches(name, allowed, n=1, cutoff=0.5)
    return matches[0] if matches else None
