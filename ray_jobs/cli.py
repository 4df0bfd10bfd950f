"""The command line that all jobs share: parsing, exit codes, `--json`, defaults."""

import contextlib
import dataclasses
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, Protocol, TypeVar

import tyro
from tyro.constructors import (
    MISSING_NONPROP,
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

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
            return from_flags(job, sys.argv[1:], description)
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


def from_flags(
    job: type[AnyJob],
    arguments: Sequence[str],
    description: str | None = None,
    *,
    default: AnyJob | None = None,
    hidden: Sequence[str] = (),
) -> AnyJob:
    """Returns a job's arguments from flags; exits after --help and on wrong usage.

    Args:
        job: The dataclass of arguments.
        arguments: The command line without the program.
        description: The text of --help; the dataclass's docstring if None.
        default: Defaults of the flags; those of the dataclass if None.
        hidden: Names of fields that have no flag.
    """
    return tyro.cli(
        job,
        args=arguments,
        default=MISSING_NONPROP if default is None else default,
        description=description,
        registry=_registry(hidden),
    )


def _registry(hidden: Sequence[str]) -> ConstructorRegistry:
    """Returns the rules by which tyro makes flags of the fields of dataclasses."""
    registry, nested = ConstructorRegistry(), False

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal nested
        if nested or not dataclasses.is_dataclass(info.type):
            return None
        # tyro's own rule does the work: while it runs, this one steps aside.
        nested = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            nested = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        return dataclasses.replace(
            spec, fields=tuple(_flag(field, hidden) for field in spec.fields)
        )

    return registry


def _flag(spec: StructFieldSpec, hidden: Sequence[str]) -> StructFieldSpec:
    """Returns a field with its help text on one line, and with its default in it only once."""

    def text() -> str | None:
        written = spec.helptext() if callable(spec.helptext) else spec.helptext
        # tyro would keep the line breaks of the source.
        return None if written is None else " ".join(written.split())

    def hint(default: str) -> str:
        is_told = default in ("", "None", "''") or "(default:" in (text() or "")
        return "" if is_told else f"(default: {default})"

    kind: Any = Annotated[spec.type, tyro.conf.arg(help_behavior_hint=hint)]
    if spec.name in hidden:
        kind = Annotated[kind, tyro.conf.Fixed, tyro.conf.Suppress]
    return dataclasses.replace(spec, type=kind, helptext=text)


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
