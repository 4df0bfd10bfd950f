"""Settings of the Lambda function from environment variables; an empty one counts as not set."""

import math
import os

from drone.errors import ConfigError


def whole_number(name: str, default: int) -> int:
    """Returns the value of a variable.

    Raises:
        ConfigError: It is not a whole number.
    """
    text = os.environ.get(name) or str(default)
    if not text.isascii() or not text.isdigit():
        raise ConfigError(f"{name} is {text!r}; it must be a whole number.")
    return int(text)


def number(name: str, default: float) -> float:
    """Returns the value of a variable.

    Raises:
        ConfigError: It is not a number.
    """
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{name} is {text!r}; it must be a number.")
    return value


def flag(name: str, default: bool) -> bool:
    """Returns the value of a variable.

    Raises:
        ConfigError: It is neither true nor false.
    """
    text = os.environ.get(name) or str(default).lower()
    if text not in ("true", "false"):
        raise ConfigError(f"{name} is {text!r}; it must be true or false.")
    return text == "true"
