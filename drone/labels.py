"""The four classes: their names and order, and how folder names are matched to them."""

import unicodedata
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

NONE = "none of these"
"""The label of an image that shows none of the classes."""


def tells_drones(classes: Sequence[str]) -> bool:
    """Whether the classes tell drones from birds: one is a bird, and another is not."""
    return BIRD in classes and len(classes) > 1


def short_names(classes: Sequence[str]) -> list[str]:
    """Returns the classes' abbreviations if each of them has one, else their names."""
    # All or none: a class that is called FB must differ from the abbreviation of another.
    return [SHORT[name] for name in classes] if set(classes) <= SHORT.keys() else list(classes)


def normalised(name: str) -> str:
    """Returns the letters and digits of a name in lower case: `Flying_Birds` -> `flyingbirds`."""
    return "".join(character for character in composed(name).lower() if character.isalnum())


def composed(name: str) -> str:
    """Returns a name with each accented letter as one character; macOS writes two."""
    return unicodedata.normalize("NFC", name)


def match_class(folder: str, classes: Sequence[str] = CLASSES) -> str | None:
    """Returns the class that a folder name stands for, or None.

    Case, spaces, punctuation and a plural s are ignored, unless several classes differ in nothing
    else: those must be written as they are.
    """
    exact = [name for name in classes if composed(name) == composed(folder)]
    stem = normalised(folder).removesuffix("s")
    similar = [name for name in classes if stem and normalised(name).removesuffix("s") == stem]
    matches = exact or similar
    return matches[0] if len(matches) == 1 else None


def nearest(name: str, allowed: Sequence[str]) -> str | None:
    """Returns the allowed name closest to a misspelt one, for "did you mean"; None without one."""
    matches = get_close_matches(name, allowed, n=1, cutoff=0.5)
    return matches[0] if matches else None
