"""What all jobs share on the command line: parsing, messages, `--json` and exit codes."""

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import tyro
from rich.console import Console
from rich.progress import track as rich_track
from rich.table import Table

from drone.errors import DroneError


class Job(Protocol):
    """A job's arguments: a dataclass with a flag for each field."""

    @property
    def json(self) -> bool:
        """Whether the result is wanted as one JSON object, last on standard output."""


AnyJob = TypeVar("AnyJob", bound=Job)
Result = dict[str, Any]
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""Failures of a disk that a person can mend."""

console = Console()
"""Where a job speaks to a person; with --json that is standard error."""


def start(
    job: type[AnyJob] | Callable[[Sequence[str]], AnyJob],
    main: Callable[[AnyJob], Result],
    description: str | None = None,
) -> NoReturn:
    """Parses the command line, runs the job and exits.

    Args:
        job: the dataclass of arguments, or a function that makes them of the words.
        main: does the work and returns what --json prints.
        description: the text of --help; the dataclass's docstring if None.

    Exits with 0 done, 1 failed, 2 wrong usage or 130 interrupted.
    """
    try:
        words = sys.argv[1:]
        arguments: AnyJob
        if isinstance(job, type):
            arguments = tyro.cli(job, args=words, description=description)
        else:
            arguments = job(words)
        console.stderr = arguments.json
        signal.signal(signal.SIGTERM, _interrupt)
        result = main(arguments)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except DroneError as error:
        fail(str(error), error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        fail(f"{error.filename or 'A file'} cannot be written: {error.strerror}.", 1)
    if arguments.json:
        print(json.dumps(result, ensure_ascii=False))
    sys.exit(0)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def features_folder() -> Path:
    """Where a machine keeps activations of frozen blocks, unless it is told."""
    place = os.environ.get("DRONE_FEATURES")
    return Path(place) if place else Path.home() / ".cache" / "drone" / "features"


def storage() -> str:
    """Where checkpoints go, unless a job is told."""
    return os.environ.get("DRONE_STORAGE") or "runs"


def fail(message: str, code: int) -> NoReturn:
    """Ends the job with a message for a person and an exit code."""
    Console(stderr=True, soft_wrap=True).print(
        f"[bold red]{'stopped' if code == 130 else 'error'}:[/]", message, highlight=False
    )
    sys.exit(code)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table: the first column left, the others right."""
    drawn = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        drawn.add_column(column, justify="right" if number else "left")
    for row in rows:
        drawn.add_row(*[_cell(value) for value in row])
    console.print(drawn)


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def track(numbers: Iterable[int], label: str, total: int) -> Iterable[int]:
    """Passes the numbers on and shows how far they are."""
    return rich_track(numbers, label, total, console=console, transient=True)
