"""Which names classes may have."""

from drone.errors import ConfigError
from drone.labels import NONE, ClassSet, composed, is_called
from drone.names import MAX_KEY_LENGTH, check_name, key

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


def check_classes(classes: ClassSet) -> None:
    """Checks the names of classes, which become names of metrics and columns, too.

    Raises:
        ConfigError: There are fewer than two, two are the same, one of them is no name, or a folder
            would be of two classes.
    """
    for name in (*classes.names, *classes.short_names):
        check_name(name, "A name of --classes")
        if len(key(name)) > MAX_KEY_LENGTH:
            raise ConfigError(
                f"A name of --classes is {name!r}; metrics have it with its special characters "
                f"encoded, which makes more than {MAX_KEY_LENGTH} characters. Shorten it."
            )
        if name in _COLUMNS:
            raise ConfigError(
                f"A name of --classes is {name!r}, which the tables of counts and of answers use "
                f"for another column. Choose another name."
            )
        if is_called(name, NONE):
            raise ConfigError(
                f"A name of --classes is {name!r}, which is the label of images that show none of "
                f"the classes. Name their folder with --negatives instead."
            )
    for names in (classes.names, classes.short_names):
        if len({composed(name) for name in names}) < max(2, len(classes)):
            raise ConfigError(
                f"--classes names {', '.join(names) or 'none'}; each must differ, and a classifier "
                f"needs at least two different classes."
            )
    for name, aliases in zip(classes, classes.aliases, strict=True):
        for alias in aliases:
            if classes.match(alias) != name:
                raise ConfigError(
                    f"--classes: the folder {alias!r} of {name!r} is called like another class "
                    f"too. Name each folder for one class."
                )
