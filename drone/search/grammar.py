"""Changes to a search space as the user writes them: on the command line or in a YAML file.

A change is a value (fixes the setting), a list (a Choice) or a mapping with `low`, `high` and
perhaps `log` (a Range).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from drone.errors import ConfigError
from drone.search.domain import Range, Space

Changes = dict[str, Any]
"""By setting: a value, a list, or a mapping with low, high and log."""

_MIN_LOG_RATIO = 10
"""A new range that spans a factor of this or more is sampled on a logarithmic scale."""


def parse_changes(arguments: Sequence[str], defaults: Space) -> Changes:
    """Parses NAME=VALUE, NAME=A,B,C and NAME=LOW..HIGH.

    Args:
        arguments: Arguments of --vary.
        defaults: Default domains. A range is logarithmic where the default domain of its setting
            is; without one, where it spans a factor of 10 or more.

    Raises:
        ConfigError: An argument has another form.
    """
    changes: Changes = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals or not text:
            raise ConfigError(
                f"--vary {argument!r} is not NAME=VALUE, NAME=A,B,C or NAME=LOW..HIGH."
            )
        if ".." in text:
            changes[name] = _parse_range(argument, text, defaults.get(name))
        elif "," in text:
            changes[name] = [_parse_value(part) for part in text.split(",")]
        else:
            changes[name] = _parse_value(text)
    return changes


def _parse_range(argument: str, text: str, default: object) -> dict[str, Any]:
    low, high = (_parse_value(part) for part in text.split("..", 1))
    if isinstance(low, str) or isinstance(high, str):
        raise ConfigError(f"--vary {argument!r}: a range needs two numbers, as in 1e-4..1e-2.")
    # Multiplied, since whole numbers of any length cannot be divided.
    log = default.log if isinstance(default, Range) else low > 0 and high >= low * _MIN_LOG_RATIO
    # A default that is logarithmic may be changed to start at 0, which has no logarithm.
    return {"low": low, "high": high, "log": log and low > 0}


def _parse_value(text: str) -> Any:
    # int first: 3 as 3.0 would be no value for a whole number.
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def flatten_changes(values: Mapping[str, Any], prefix: str = "") -> Changes:
    """Returns changes from a file by dotted name; the file may also nest them in groups."""
    flat: Changes = {}
    for name, value in values.items():
        # With low or high it is a range, otherwise a group of settings.
        if isinstance(value, Mapping) and "low" not in value and "high" not in value:
            flat.update(flatten_changes(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
