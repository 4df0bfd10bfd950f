"""Converts settings between dataclasses and plain dictionaries, with errors that name the setting.

The dataclasses themselves are defined beside the code that they configure.
"""

import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from drone.errors import ConfigError
from drone.labels import nearest

Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a dataclass as a nested dictionary for JSON or YAML; tuples become lists."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        elif isinstance(value, tuple):
            # As JSON and YAML read it back, so that stored settings compare equal.
            value = list(value)
        result[field.name] = value
    return result


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested settings: `{"model": {"dropout": 0.2}}` -> `{"model.dropout": 0.2}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def override(config: Config, values: Mapping[str, Any], source: str) -> Config:
    """Returns a copy of `config` with the settings in `values`, which may be nested.

    Args:
        config: A frozen dataclass, possibly of dataclasses.
        values: New values by field name.
        source: Where the values come from, for error messages: a file's path, for example.

    Raises:
        ConfigError: A name is unknown, or a value is of the wrong type or out of range.
    """
    hints = typing.get_type_hints(type(config))
    names = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in names:
            like = nearest(str(name), names)
            hint = f" Did you mean {like!r}?" if like else f" It has: {', '.join(names)}."
            raise ConfigError(f"{source}: there is no setting {name!r}.{hint}")
        current = getattr(config, name)
        if dataclasses.is_dataclass(current) and not isinstance(current, type):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{source}: {name} is a group of settings, not {value!r}.")
            changes[name] = override(current, value, f"{source}: {name}")
        else:
            changes[name] = _converted(value, hints[name], f"{source}: {name}")
    try:
        # replace() runs __post_init__, which knows the ranges but not where values come from.
        return dataclasses.replace(config, **changes)  # type: ignore[type-var]
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def coerce(config: type, name: str, value: Any, source: str) -> Any:
    """Converts a value to the type of a setting, without the dataclass's own validation.

    Args:
        config: A dataclass, possibly of dataclasses.
        name: Dotted name of one of its settings.
        value: Value to convert.
        source: Where the value comes from, for error messages.

    Raises:
        ConfigError: There is no such setting, or the value has the wrong type.
    """
    return _converted(value, setting_type(config, name, source), f"{source}: {name}")


def setting_type(config: type, name: str, source: str) -> Any:
    """Returns the type of a setting, as it is annotated.

    Args:
        config: A dataclass, possibly of dataclasses.
        name: Dotted name of the setting.
        source: Where the name comes from, for error messages.

    Raises:
        ConfigError: There is no such setting.
    """
    types_of = _setting_types(config)
    if name not in types_of:
        like = nearest(name, list(types_of))
        hint = f" Did you mean {like!r}?" if like else " See python ray_jobs/train.py --help."
        raise ConfigError(f"{source}: there is no setting {name!r}.{hint}")
    return types_of[name]


def _setting_types(config: type, prefix: str = "") -> dict[str, Any]:
    """Returns the types of all settings by dotted name."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(config).items():
        if dataclasses.is_dataclass(hint):
            found |= _setting_types(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = hint
    return found


def differing(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that differ from defaults of the same structure."""
    differences: dict[str, Any] = {}
    for name, value in values.items():
        default = defaults[name]
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            inner = differing(value, default)
            if inner:
                differences[name] = inner
        elif value != default:
            differences[name] = value
    return differences


def _converted(value: Any, hint: Any, location: str) -> Any:
    """Converts a value to the type in an annotation; supports the annotations in use here."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            allowed = ", ".join(map(str, arguments))
            raise ConfigError(f"{location} is {value!r}; allowed are {allowed}.")
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        # Optional is the only union among the settings.
        inner = next(option for option in arguments if option is not type(None))
        return _converted(value, inner, location)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{location} is {value!r}; it must be a list.")
        options = arguments if Ellipsis not in arguments else (arguments[0],) * len(value)
        if len(options) != len(value):
            raise ConfigError(f"{location} has {len(value)} values; it must have {len(options)}.")
        return tuple(
            _converted(item, option, location) for item, option in zip(value, options, strict=True)
        )
    if hint is float and isinstance(value, str):
        # YAML reads 1e-3, without a point, as text.
        with contextlib.suppress(ValueError):
            value = float(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{location} is {value}; it must be a finite number.")
    # In Python True is an int; as a number of epochs it is a mistake.
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{location} is {value!r}; it must be of type {hint.__name__}.")
    return value
