"""The errors that a user can cause, in one small tree.

Each message says what happened, to which file or setting, and what to do next.
The jobs print it without a traceback and leave with `exit_code`.
"""


class DroneError(Exception):
    """Anything that a person can mend; everything else is a defect and shows its traceback."""

    exit_code = 1


class ConfigError(DroneError, ValueError):
    """A setting, a flag or a preset is wrong."""

    exit_code = 2


class DataError(DroneError):
    """The pictures or the data set are not what the job needs."""


class WeightsError(DroneError):
    """The starting weights cannot be had or do not fit."""


class RunError(DroneError):
    """A run, model or version does not exist or cannot be used this way."""


class TrackingError(DroneError):
    """The tracking server cannot be reached."""


class TrainingError(DroneError):
    """Training cannot go on: a loss that is not finite, or workers lost too often."""


class Interrupted(DroneError):
    """Stopped by Ctrl-C or SIGTERM; what was done so far is kept."""

    exit_code = 130


class ImageError(DroneError):
    """Bytes that give no picture.

    Attributes:
        status: the HTTP status that says the same (400, 413, 415 or 422).
        problem: one of PROBLEMS, the verdict in a manifest.
    """

    PROBLEMS = ("empty", "non-media", "undecodable", "unsupported", "too-small", "too-large")

    def __init__(self, status: int, problem: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.problem = problem

    def __reduce__(self) -> tuple[type["ImageError"], tuple[int, str, str]]:
        return type(self), (self.status, self.problem, str(self))
