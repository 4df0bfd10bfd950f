"""The command line that all jobs share: parsing, exit codes, `--json`, defaults."""

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import tyro

from drone.names import printable
from drone.project import user_cache
from drone.redaction import redact
from ray_jobs import bug_report
from ray_jobs.console import console


class Job(Protocol):
    """A job's arguments: a dataclass with a flag per field."""

    @property
    def json(self) -> bool:
        """Whether the result is printed as one JSON object, last on standard output."""


AnyJob = TypeVar("AnyJob", bound=Job)
Result = dict[str, Any]


def start(
    job: type[AnyJob] | Callable[[Sequence[str]], AnyJob],
    main: Callable[[AnyJob], Result],
    description: str | None = None,
) -> NoReturn:
    """Parses the command line, runs the job and exits.

    Args:
        job: The dataclass of arguments, or a function that parses them.
        main: Runs the job and returns what --json prints.
        description: The text of --help; the dataclass's docstring if None.

    Exits with 0 done, 1 failed, 2 wrong usage or 130 interrupted; no exception leaves it.
    """
    try:
        arguments = _parse(job, description)
        # Messages then go to standard error, so that the output is JSON alone.
        console.stderr = arguments.json
        # A job that is stopped from outside ends as after Ctrl-C, with its checkpoint.
        signal.signal(signal.SIGTERM, _interrupt)
        result = main(arguments)
        if arguments.json:
            # In ASCII: one line by every reader's rules, whatever the names in it contain.
            print(redact(json.dumps(result)))
    except SystemExit as ending:
        bug_report.leave(int(ending.code or 0))
    except BaseException as error:
        bug_report.end(error)
    bug_report.leave(0)


def _parse(
    job: type[AnyJob] | Callable[[Sequence[str]], AnyJob], description: str | None
) -> AnyJob:
    def parse() -> AnyJob:
        if isinstance(job, type):
            return tyro.cli(job, args=sys.argv[1:], description=description)
        return job(sys.argv[1:])

    if all(argument.isprintable() for argument in sys.argv):
        return parse()
    # tyro quotes arguments as they are, control characters included.
    quoted = io.StringIO()
    try:
        with contextlib.redirect_stdout(quoted), contextlib.redirect_stderr(quoted):
            return parse()
    finally:
        for line in filter(None, quoted.getvalue().split("\n")):
            print(printable(line), file=sys.stderr)


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """Returns a flag's value, for those that decide the defaults of the others; None without it."""
    for argument, following in zip(arguments, [*arguments[1:], None], strict=False):
        if argument == flag:
            return following
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def default_weights() -> str:
    """Returns the default of --weights."""
    return os.environ.get("DRONE_WEIGHTS") or "imagenet"


def default_storage() -> str:
    """Returns the default of --storage."""
    return os.environ.get("DRONE_STORAGE") or "runs"


def default_activation_cache() -> Path:
    """Returns the default of --activation-cache."""
    folder = os.environ.get("DRONE_ACTIVATION_CACHE")
    return Path(folder) if folder else user_cache() / "activations"
