"""The command line that all jobs share: parsing, exit codes, `--json`, defaults."""

import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Protocol, TypeVar

import tyro
import yaml
from rich.console import Console
from rich.markup import escape

from drone.errors import ConfigError, DroneError
from drone.project import user_cache
from drone.redaction import redact
from ray_jobs.console import console


class Job(Protocol):
    """A job's arguments: a dataclass with a flag per field."""

    @property
    def json(self) -> bool:
        """Whether the result is printed as one JSON object, last on standard output."""


AnyJob = TypeVar("AnyJob", bound=Job)
Result = dict[str, Any]
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""Failures of a disk that the user can fix."""


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

    Exits with 0 done, 1 failed, 2 wrong usage or 130 interrupted.
    """
    sys.excepthook = _show_traceback
    try:
        arguments: AnyJob
        if isinstance(job, type):
            arguments = tyro.cli(job, args=sys.argv[1:], description=description)
        else:
            arguments = job(sys.argv[1:])
        # Messages then go to standard error, so that the output is JSON alone.
        console.stderr = arguments.json
        # A job that is stopped from outside ends as after Ctrl-C, with its checkpoint.
        signal.signal(signal.SIGTERM, _interrupt)
        result = main(arguments)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except DroneError as error:
        _fail(str(error), error.exit_code)
    # Whoever read the output has gone, as in `| head`: no reason for a traceback.
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        _fail(f"Cannot write {error.filename or 'a file'}: {error.strerror}.", 1)
    if arguments.json:
        print(redact(json.dumps(result, ensure_ascii=False)))
    sys.exit(0)


def _show_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Prints an error that is a bug; the errors of other libraries quote URIs."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> NoReturn:
    """Ends the job with a message and an exit code."""
    # A file name or a setting in the message may look like markup.
    Console(stderr=True, soft_wrap=True).print(
        f"[bold red]{'stopped' if code == 130 else 'error'}:[/]", escape(message), highlight=False
    )
    sys.exit(code)


def default_weights() -> str:
    """Returns the default of --weights."""
    return os.environ.get("DRONE_WEIGHTS", "imagenet")


def default_storage() -> str:
    """Returns the default of --storage."""
    return os.environ.get("DRONE_STORAGE") or "runs"


def default_activation_cache() -> Path:
    """Returns the default of --activation-cache."""
    folder = os.environ.get("DRONE_ACTIVATION_CACHE")
    return Path(folder) if folder else user_cache() / "activations"


def read_yaml(file: Path, kind: type = dict) -> Any:
    """Reads settings by name from a file, or a list of them if `kind` is list.

    Raises:
        ConfigError: The file cannot be read or holds something else.
    """
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"Cannot read {file}: {error}") from error
    entries = content if isinstance(content, list) else [content]
    if not isinstance(content, kind) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(
            f"{file} does not hold {'a list of ' if kind is list else ''}settings by name."
        )
    return content
