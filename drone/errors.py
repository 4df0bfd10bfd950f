"""Errors that users can cause and fix.

Each message says what happened to which file or setting, and what to do next. The jobs print it
without a traceback and exit with `exit_code`.
"""

import errno

from drone.redaction import redact


class DroneError(Exception):
    """Base of all errors that a user can fix; any other exception is a bug."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        # Here, for all of them: messages quote URIs, and those of other libraries that do.
        super().__init__(redact(message))


class ConfigError(DroneError, ValueError):
    """A setting, a flag or a preset is wrong."""

    exit_code = 2


def cannot_listen(host: str, port: int, error: Exception) -> ConfigError:
    """Returns the error for an address that a server cannot listen on, by its cause."""
    number, reason = getattr(error, "errno", None), getattr(error, "strerror", None)
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if number == errno.EADDRINUSE:
        advice = "Another program listens there: stop it, or choose another --port."
    elif number == errno.EACCES:
        advice = "Choose a --port from 1024 on, which needs no special rights."
    else:
        advice = "Set --host to an address of this machine, such as 127.0.0.1."
    return ConfigError(f"Cannot listen on {where}: {reason or 'this is no address'}. {advice}")


class DataError(DroneError):
    """The images or the data set are not what the job needs."""


class DamagedError(DataError):
    """A file is missing, cut short, or not what was once written."""


class LockedError(DroneError):
    """Another process is writing what this one would write."""


class WeightsError(DroneError):
    """The starting weights cannot be loaded or do not fit the model."""


class RunError(DroneError):
    """A run, model or version does not exist or cannot be used this way."""


class TrackingError(DroneError):
    """The tracking server cannot be reached."""


class TrainingError(DroneError):
    """Training cannot continue, such as when the loss is not finite."""


class ResumableError(DroneError):
    """Training ended early: workers were lost too often, or its storage failed for too long."""


class Interrupted(DroneError):
    """The job was stopped by Ctrl-C or SIGTERM; its progress is saved."""

    exit_code = 130


class ImageError(DroneError):
    """The bytes cannot be decoded to an image that the model accepts.

    Attributes:
        reason: One of `REASONS`. A manifest stores it and HTTP responses name it.
    """

    REASONS = ("empty", "non-media", "undecodable", "unsupported", "too-small", "too-large")

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    # The default would pickle the message alone, and Ray sends these errors between processes.
    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        return type(self), (self.reason, str(self))
