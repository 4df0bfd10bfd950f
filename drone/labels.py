"""The four classes: their order, their names, and how folders are matched to them."""

from collections.abc import Sequence
from difflib import get_close_matches

CLASSES = ("Flying Birds", "Large QuadCopters", "Small QuadCopters", "Winged Drones")
"""Class names in the order of their indices, which is the same everywhere."""

SHORT = {
    "Flying Birds": "FB",
    "Large QuadCopters": "LQC",
    "Small QuadCopters": "SQC",
    "Winged Drones": "WD",
}

BIRD = "Flying Birds"
"""The one class that is not a drone."""


def normalised(name: str) -> str:
    """Lower-case letters and digits of a name: `flying_birds`, `FlyingBirds` -> `flyingbirds`."""
    return "".join(character for character in name.lower() if character.isalnum())


def match_class(folder: str, classes: Sequence[str] = CLASSES) -> str | None:
    """The class that a folder's name means, or None.

    Case, spaces and punctuation do not count, nor does a missing plural s.
    """
    wanted = normalised(folder).removesuffix("s")
    return next((name for name in classes if normalised(name).removesuffix("s") == wanted), None)


def nearest(name: str, allowed: Sequence[str]) -> str | None:
    """The allowed name most like `name`, for a "did you mean"; None if none is like it."""
    found = get_close_matches(name, allowed, n=1, cutoff=0.5)
    return found[0] if found else None
