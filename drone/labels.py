"""The classes of a model: names, abbreviations, roles, and the folders that hold their images."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, get_args, overload

Role = Literal["bird", "drone", "other"]
"""What alarms take the images of a class for."""

ROLES: tuple[Role, ...] = get_args(Role)

NONE = "none of these"
"""The label of an image that shows none of the classes."""

_SHORT_NAMES = {
    "Flying Birds": "FB",
    "Large QuadCopters": "LQC",
    "Small QuadCopters": "SQC",
    "Winged Drones": "WD",
}
"""Abbreviations of the original project's classes."""

_ROLE_WORDS: dict[str, Role] = {
    **dict.fromkeys(
        (
            *("bird", "fowl", "raptor", "gull", "seagull", "eagle", "falcon", "buzzard"),
            *("vulture", "owl", "crow", "raven", "pigeon", "dove", "goose", "geese", "duck"),
            *("swan", "heron", "stork", "swift", "swallow", "starling"),
        ),
        "bird",
    ),
    **dict.fromkeys(
        (
            *("drone", "uav", "uas", "multirotor", "quadrotor", "quadcopter", "hexacopter"),
            *("octocopter", "multicopter"),
        ),
        "drone",
    ),
}
"""Roles by words in names of classes, in the singular."""


@dataclass(frozen=True)
class ClassSet(Sequence[str]):
    """Classes in the order of their indices: the sequence of their names, and more about each."""

    names: tuple[str, ...]
    short_names: tuple[str, ...]
    """Abbreviations, for tables and plots."""

    roles: tuple[Role, ...]
    aliases: tuple[tuple[str, ...], ...]
    """Other names of the folders that hold a class's images."""

    @staticmethod
    def of(
        names: Sequence[str],
        short_names: Sequence[str] = (),
        roles: Sequence[Role] = (),
        aliases: Sequence[Sequence[str]] = (),
    ) -> "ClassSet":
        """Returns classes by their names, with the usual values for what is not given.

        Args:
            names: Names of the classes.
            short_names: Their abbreviations; by default those of the original project's classes, of
                others the names.
            roles: Their roles; by default those that words in the names suggest.
            aliases: Other names of their folders.
        """
        return ClassSet(
            tuple(names),
            tuple(short_names or abbreviated(names)),
            tuple(roles) or tuple(map(suggested_role, names)),
            tuple(map(tuple, aliases)) or ((),) * len(names),
        )

    def __len__(self) -> int:
        """Returns the number of classes."""
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        """Yields the names."""
        return iter(self.names)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        """Returns the name with an index."""
        return self.names[index]

    def indices(self, role: Role) -> list[int]:
        """Returns the indices of the classes that have a role."""
        return [index for index, own in enumerate(self.roles) if own == role]

    @property
    def present_roles(self) -> tuple[Role, ...]:
        """Roles that a class has, in the order of ROLES."""
        return tuple(role for role in ROLES if role in self.roles)

    @property
    def role_indices(self) -> list[int]:
        """Index of each class's role among `present_roles`."""
        return [self.present_roles.index(role) for role in self.roles]

    @property
    def tells_drones(self) -> bool:
        """Whether some classes are drones and others are not, so that there can be alarms."""
        return "drone" in self.roles and len(self.present_roles) > 1

    def match(self, folder: str) -> str | None:
        """Returns the class that a folder is called after, by its name or an alias, or None.

        Case, spaces, punctuation and a plural s are ignored, unless several classes differ in
        nothing else: those must be written as they are.
        """
        owners = [
            (alias, name)
            for name, aliases in zip(self.names, self.aliases, strict=True)
            for alias in (name, *aliases)
        ]
        exact = {owner for alias, owner in owners if composed(alias) == composed(folder)}
        similar = {owner for alias, owner in owners if is_called(folder, alias)}
        matches = exact or similar
        return matches.pop() if len(matches) == 1 else None


def abbreviated(names: Sequence[str]) -> list[str]:
    """Returns abbreviations if each name is that of a default class, else the names."""
    # All or none: a class that is called FB must differ from the abbreviation of another.
    has_all = set(names) <= _SHORT_NAMES.keys()
    return [_SHORT_NAMES[name] for name in names] if has_all else list(names)


def suggested_role(name: str) -> Role:
    """Returns the role of the last word in a name that suggests one: drone in "bird-like drone"."""
    # Words end at capitals too, unless they are a word with them: QuadCopters, FlyingBirds.
    words = re.findall(r"[^\W\d_]+", name) + re.findall(r"[A-Z]?[a-z]+", name)
    stems = [word.lower().removesuffix("s") for word in words]
    suggested = [_ROLE_WORDS[stem] for stem in stems if stem in _ROLE_WORDS]
    return suggested[-1] if suggested else "other"


def normalised(name: str) -> str:
    """Returns the letters and digits of a name in lower case: `Flying_Birds` -> `flyingbirds`."""
    return "".join(character for character in composed(name).lower() if character.isalnum())


def composed(name: str) -> str:
    """Returns a name with each accented letter as one character; macOS writes two."""
    return unicodedata.normalize("NFC", name)


def is_called(folder: str, name: str) -> bool:
    """Returns whether two names are one but for case, spaces, punctuation and a plural s."""
    stem = normalised(folder).removesuffix("s")
    return bool(stem) and stem == normalised(name).removesuffix("s")


def nearest(name: str, allowed: Sequence[str]) -> str | None:
    """Returns the allowed name closest to a misspelt one, for "did you mean"; None without one."""
    matches = get_close_matches(name, allowed, n=1, cutoff=0.5)
    return matches[0] if matches else None


CLASSES = ClassSet.of(tuple(_SHORT_NAMES))
"""The default classes: those of the original project."""
