"""Where the classes of a data set come from: names, a YAML file, or the folders of raw images."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from drone.data.dataset import CLASSES_FILE, Dataset
from drone.data.prepare.class_names import check_classes
from drone.data.prepare.listing import class_folders
from drone.data.prepare.roots import Opener
from drone.errors import ConfigError
from drone.labels import CLASSES, ROLES, ClassSet, composed, is_called, nearest, suggested_role
from drone.settings_file import read_yaml

FOLDERS = "folders"
"""Stands for the classes that the raw folders have."""

_MAX_NAMED = 8
"""Classes that a suggested command names one by one."""

# YAML reads a class called 747, no or ~ as a number, as false and as nothing.
_IN_QUOTES = "a name must be text. Put it in quotes."

_FIELDS = ("name", "short", "role", "folders")


def read_classes(
    values: Sequence[str],
    roots: Sequence[str | Path],
    negatives: Sequence[str | Path],
    opener: Opener,
) -> ClassSet:
    """Returns the classes that `--classes` stands for.

    Args:
        values: Names, one name of a YAML file, or the word "folders".
        roots: Raw folders, whose subfolders are classes if it is that word.
        negatives: Folders of negatives, which are no classes even if they lie in a raw folder.
        opener: Opens a root by its name.

    Raises:
        ConfigError: The file does not hold classes, or a class cannot be called so.
        DataError: A root cannot be opened.
    """
    if tuple(values) != (FOLDERS,):
        return named_classes(values)
    names = (composed(name) for name in class_folders(roots, negatives, opener))
    classes = ClassSet.of(_distinct(sorted(names)))
    check_classes(classes)
    return classes


def named_classes(values: Sequence[str]) -> ClassSet:
    """Returns the classes of names, or of one name of a YAML file.

    Raises:
        ConfigError: The file does not hold classes, or a class cannot be called so.
    """
    if len(values) == 1 and values[0].endswith((".yaml", ".yml")):
        # Every entry is checked below, with an error that says what a class may be.
        entries = read_yaml(Path(values[0]), list, entry=object, what="a list of classes")
        classes = parse_classes(entries, values[0])
        check_classes(classes, values[0])
    else:
        classes = ClassSet.of(values)
        check_classes(classes)
    return classes


def _distinct(names: Iterable[str]) -> list[str]:
    """Returns the names without those that are called like an earlier one."""
    distinct: list[str] = []
    for name in names:
        if not any(is_called(name, other) for other in distinct):
            distinct.append(name)
    return distinct


def parse_classes(entries: Sequence[Any], source: str) -> ClassSet:
    """Returns the classes of a YAML file.

    Args:
        entries: A name, or a mapping with name and maybe short, role and folders, for each class.
        source: Name of the file, for error messages.

    Raises:
        ConfigError: An entry is something else.
    """
    items = [
        _item(entry, f"{source}: class {number}") for number, entry in enumerate(entries, start=1)
    ]
    return ClassSet.of(
        names=[item["name"] for item in items],
        short_names=_short_names(items),
        roles=[item.get("role", suggested_role(item["name"])) for item in items],
        aliases=[item.get("folders", ()) for item in items],
    )


def _short_names(items: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the abbreviations of classes; none if no class has one, for the usual ones."""
    if not any("short" in item for item in items):
        return []
    return [item.get("short", item["name"]) for item in items]


def _item(entry: Any, where: str) -> dict[str, Any]:
    """Returns a class as a mapping, checked."""
    if isinstance(entry, str):
        return {"name": entry}
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} is {_as_written(entry)}; {_IN_QUOTES}")
    _check_entry(entry, where)
    return entry


def _as_written(value: Any) -> str:
    """Returns a value that is no text as YAML has it: null, true, 747, 2026-11-28."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)[:80]


def _check_entry(item: dict[str, Any], where: str) -> None:
    for key in item:
        if key not in _FIELDS:
            like = nearest(str(key), _FIELDS)
            hint = f"did you mean {like!r}?" if like else f"it may have {', '.join(_FIELDS)}."
            raise ConfigError(f"{where} has {key!r}; {hint}")
    if "name" not in item:
        raise ConfigError(f"{where} has no name. Add one: name: Gulls")
    for key in ("name", "short"):
        if not isinstance(item.get(key, ""), str):
            raise ConfigError(f"{where}: {key} is {_as_written(item[key])}; {_IN_QUOTES}")
    if item.get("role", "other") not in ROLES:
        raise ConfigError(f"{where}: role is {item['role']!r}; allowed are {', '.join(ROLES)}.")
    folders = item.get("folders", [])
    if not isinstance(folders, list):
        raise ConfigError(f"{where}: folders is {folders!r}; it must be a list of names.")
    for name in folders:
        if not isinstance(name, str):
            raise ConfigError(f"{where}: a folder is {_as_written(name)}; {_IN_QUOTES}")


def write_classes(classes: ClassSet, target: Path) -> None:
    """Writes a YAML file that `read_classes` reads."""
    columns = (classes.names, classes.short_names, classes.roles, map(list, classes.aliases))
    entries = [dict(zip(_FIELDS, values, strict=True)) for values in zip(*columns, strict=True)]
    target.write_text(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True), "utf-8")


def classes_argument(dataset: Dataset) -> list[str] | None:
    """Returns what to give as --classes for the classes of a data set; None for the default."""
    classes = dataset.classes
    if classes == CLASSES:
        return None
    if classes == ClassSet.of(classes.names) and len(classes) <= _MAX_NAMED:
        return list(classes.names)
    return [str(dataset.folder / CLASSES_FILE)]
