"""Which names classes may have, and which folders hold their images."""

from collections import Counter
from collections.abc import Sequence

from drone.data.prepare.listing import is_hidden
from drone.errors import ConfigError
from drone.labels import NONE, ClassSet, composed, is_called, normalised
from drone.names import MAX_KEY_LENGTH, check_name, key, listed

_MAX_CLASSES = 200
"""Classes that reports, pages and tables are laid out for."""

_COLUMNS = ("bin_px", "index", "label", "longer_side_px", "total")
"""Columns of tables that have a column per class too."""

ALL_KINDS = "all"
"""Row of all negatives together, in tables that have a row per kind."""


def check_kind(name: str, setting: str) -> None:
    """Checks the name of a kind of negatives.

    Args:
        name: The name.
        setting: Where it comes from, for error messages.

    Raises:
        ConfigError: It is no name, or tables use it for another row.
    """
    check_name(name, setting)
    if name in (*_COLUMNS, ALL_KINDS):
        raise ConfigError(f"{setting} is {name!r}, which the tables of kinds use for another row.")


def folder_name(class_name: str) -> str:
    """Returns the name of the folder that images of a class are written to.

    In a set of classes that passes `check_classes` it is called like this class alone.
    """
    return class_name.replace("/", " ").lstrip(". ")


def check_classes(classes: ClassSet, source: str = "--classes") -> None:
    """Checks the names of classes, which become names of metrics, columns and folders, too.

    Args:
        classes: The classes.
        source: Where they come from, for error messages: the flag, or the name of a file.

    Raises:
        ConfigError: There are too few or too many, two are the same, one of them is no name, or a
            folder would be of two classes or of none.
    """
    _check_number(classes, source)
    for name in (*classes.names, *classes.short_names):
        _check_class_name(name, f"A class name in {source}")
    _check_distinct(classes.names, f"{source} has the class")
    _check_distinct(classes.short_names, f"{source} has the short name")
    for name, aliases in zip(classes, classes.aliases, strict=True):
        _check_folder(name, classes, source)
        for alias in aliases:
            _check_alias(alias, name, classes, source)


def _check_number(classes: ClassSet, source: str) -> None:
    if not 2 <= len(classes) <= _MAX_CLASSES:
        number = f"{len(classes)} class{'' if len(classes) == 1 else 'es'}"
        raise ConfigError(f"{source} has {number}; a data set has from 2 to {_MAX_CLASSES}.")


def _check_class_name(name: str, setting: str) -> None:
    check_name(name, setting)
    if len(key(name)) > MAX_KEY_LENGTH:
        raise ConfigError(
            f"{setting} is {name!r}; metrics have it with its special characters encoded, which "
            f"makes more than {MAX_KEY_LENGTH} characters. Shorten it."
        )
    if name in _COLUMNS:
        raise ConfigError(
            f"{setting} is {name!r}, which the tables of counts and of answers use for another "
            f"column. Choose another name."
        )
    if is_called(name, NONE):
        raise ConfigError(
            f"{setting} is {name!r}, which is the label of images that show none of the classes. "
            f"Name their folder with --negatives instead."
        )


def _check_distinct(names: Sequence[str], what: str) -> None:
    repeated = [name for name, count in Counter(map(composed, names)).items() if count > 1]
    if repeated:
        shown = listed([repr(name) for name in repeated])
        raise ConfigError(f"{what} {shown} more than once; each must differ.")


def _check_folder(name: str, classes: ClassSet, source: str) -> None:
    """Fails if the folder of a class would be one of another class, or would be passed over."""
    folder = folder_name(name)
    if classes.match(folder) == name and not is_hidden(folder):
        return
    reason = "no folder of images can have that name"
    if normalised(folder) and not is_hidden(folder):
        reason = f"its folder, {folder!r}, would match another class too"
    raise ConfigError(f"A class name in {source} is {name!r}, but {reason}. Choose another name.")


def _check_alias(alias: str, name: str, classes: ClassSet, source: str) -> None:
    if is_called(alias, NONE):
        raise ConfigError(
            f"{source} lists the folder {alias!r} under {name!r}, but that is the label of images "
            f"that show none of the classes. Name the folder with --negatives instead."
        )
    if classes.match(alias) != name:
        raise ConfigError(
            f"{source} lists the folder {alias!r} under {name!r}, but it matches another class "
            f"too. List each folder under one class."
        )
