"""Dataclass settings to and from plain dictionaries, with errors that name the setting.

The settings themselves live beside what they configure; this module only carries them.
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
    """Nested dictionary of a dataclass, ready for JSON or YAML (tuples become lists)."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        elif isinstance(value, tuple):
            value = list(value)
        result[field.name] = value
    return result


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"model": {"dropout": 0.2}}` -> `{"model.dropout": 0.2}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def override(config: Config, values: Mapping[str, Any], source: str) -> Config:
    """A copy of `config` with the settings in `values`, which may be nested.

    Args:
        config: a frozen dataclass, possibly of dataclasses.
        values: what to change, by field name.
        source: where the values come from, for the messages (a file's path, notify).

    Raises:
        ConfigError: an unknown name, a value of a wrong type, or one that the dataclass refuses.
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
            changes[name] = _checked(value, hints[name], f"{source}: {name}")
    try:
        return dataclasses.replace(config, **changes)  # type: ignore[type-var]
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def coerce(config: type, name: str, value: Any, source: str) -> Any:
    """A value as the type of a setting wants it; whether the dataclass allows it is not asked.

    Args:
        config: a dataclass, possibly of dataclasses.
        name: of a setting that it has, flat.
        value: for it.
        source: where the value comes from, for messages.

    Raises:
        ConfigError: a value of a wrong type.
    """
    hint: Any = config
    for part in name.split("."):
        hint = typing.get_type_hints(hint)[part]
    return _checked(value, hint, f"{source}: {name}")


def differing(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that differ from others of the same shape, group by group."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        default = defaults[name]
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            inner = differing(value, default)
            if inner:
                found[name] = inner
        elif value != default:
            found[name] = value
    return found


def _checked(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotation `hint` wants it; only the annotations used here are known."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            allowed = ", ".join(map(str, arguments))
            raise ConfigError(f"{where} is {value!r}; allowed are {allowed}.")
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        inner = next(option for option in arguments if option is not type(None))
        return _checked(value, inner, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} is {value!r}; a list is wanted.")
        options = arguments if Ellipsis not in arguments else (arguments[0],) * len(value)
        if len(options) != len(value):
            raise ConfigError(f"{where} has {len(value)} values; {len(options)} are wanted.")
        return tuple(
            _checked(item, option, where) for item, option in zip(value, options, strict=True)
        )
    if hint is float and isinstance(value, str):
        # YAML reads 1e-3, without a point, as text.
        with contextlib.suppress(ValueError):
            value = float(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} is {value}; a finite number is wanted.")
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} is {value!r}; a value of type {hint.__name__} is wanted.")
    return value
