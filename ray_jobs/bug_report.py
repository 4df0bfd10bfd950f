"""How a job ends after an exception: a line that says what to do, and an exit code.

An exception that no user can fix is a bug: its traceback goes to a file. Each job installs this
before it imports anything else, since an incomplete installation fails while importing. Hence the
standard library alone.
"""

import contextlib
import errno
import io
import os
import platform
import select
import signal
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from drone.errors import DroneError, Interrupted
from drone.names import printable
from drone.redaction import redact

_DISK_ERRORS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ESTALE),
    *(errno.EMFILE, errno.ENFILE),
)
"""Errors of files and disks that the user can fix."""

_STORE_ERRORS = ("mlflow.exceptions", "requests.exceptions", "sqlalchemy.exc")
"""Modules of the errors of a tracking store; by name, since importing them takes seconds."""

_REFUSALS = (
    *("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "PERMISSION_DENIED", "UNAUTHENTICATED"),
    *("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_CONFLICT"),
)
"""MLflow's codes for requests that it will not take at another time either."""

_MAX_LENGTH = 4000
"""Maximum characters of a message: a setting that it quotes may have any length."""


def install(module: str) -> None:
    """Reports exceptions of the imports, and of threads, as `end` does.

    Args:
        module: `__name__` of the job; nothing is done where the job is imported, not run.
    """
    if module != "__main__":
        return
    sys.excepthook = _on_exception
    sys.unraisablehook = _on_unraisable
    threading.excepthook = _on_thread_exception
    for stream in (sys.stdout, sys.stderr):
        # A file name that is not UTF-8 holds lone surrogates, which cannot be encoded.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def end(error: BaseException) -> NoReturn:
    """Ends the job after an exception, with a message and an exit code.

    With DRONE_DEBUG set, the traceback is shown before it.
    """
    if isinstance(error, BrokenPipeError) and _has_no_reader():
        leave(1)
    if os.environ.get("DRONE_DEBUG"):
        sys.stderr.write(_traceback(error))
    message, code = _describe(error)
    say("stopped" if code == 130 else "error", message)
    leave(code)


def leave(code: int) -> NoReturn:
    """Exits with a code; output that nobody reads any more is dropped without an error."""
    if threading.current_thread() is threading.main_thread():
        # Ray's clean-up at exit takes seconds, and an interrupt in it would print a traceback.
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: os._exit(130))
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        # Python flushes once more at exit, and would report the same error there.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def say(label: str, message: str) -> None:
    """Prints a message on one line of standard error, after a label."""
    text = printable(redact(message[:_MAX_LENGTH]))
    # Without rich, which may be what cannot be imported.
    is_terminal = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    shown = f"\x1b[1;31m{label}:\x1b[0m" if is_terminal else f"{label}:"
    with contextlib.suppress(OSError):
        print(shown, text, file=sys.stderr, flush=True)


def _describe(error: BaseException) -> tuple[str, int]:
    """Returns the message and the exit code of an exception."""
    if _is_interrupt(error) and not isinstance(error, Interrupted):
        return "interrupted", 130
    # An `Interrupted` says what is kept and how to continue.
    if isinstance(error, DroneError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError):
        return "Memory ran out. Close other programs, or use a smaller batch or fewer workers.", 1
    if isinstance(error, ImportError) and not (error.name or "").startswith(("drone", "ray_jobs")):
        return (
            f"The installation is incomplete: {_first_line(error)}. Run `make setup`, and start "
            f"the job with .venv/bin/python.",
            1,
        )
    if any(kind.__module__ in _STORE_ERRORS for kind in type(error).__mro__):
        return _describe_store_error(error), 1
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return f"Cannot use {os.fsdecode(error.filename or 'a file')}: {error.strerror}.", 1
    return f"{_first_line(error)}. This is a bug. {_save(error)}", 1


def _describe_store_error(error: BaseException) -> str:
    if getattr(error, "error_code", None) in _REFUSALS:
        return f"The tracking store refused a request: {_first_line(error)}."
    store = os.environ.get("MLFLOW_TRACKING_URI") or "mlflow.db in this folder"
    return (
        f"The tracking store failed: {_first_line(error)}. See that {store} runs and has space, or "
        f"set MLFLOW_TRACKING_URI, then start the job again."
    )


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether an exception is an interrupt, or what a library made of one."""
    # Modules in C report an interrupt while they are imported as a failed import.
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0][:300].rstrip(".") if lines else ""
    if isinstance(error, ImportError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _save(error: BaseException) -> str:
    """Writes the traceback to a file in the temporary folder; returns what the user can do."""
    job = Path(sys.argv[0]).stem
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="backslashreplace", prefix=f"drone-{job}-",
            suffix=".log", delete=False,
        ) as file:  # fmt: skip
            file.write(redact(f"{sys.argv}\nPython {sys.version} on {platform.platform()}\n\n"))
            file.write(_traceback(error))
    except OSError as failure:
        return f"Its traceback could not be saved ({failure.strerror}); DRONE_DEBUG=1 shows it."
    return f"Report it with {file.name}, which has the traceback."


def _traceback(error: BaseException) -> str:
    """Returns a traceback without the credentials that other libraries quote in their errors."""
    return redact("".join(traceback.format_exception(error)))


def _has_no_reader() -> bool:
    """Whether the reader of the job's output has gone, as in `| head`."""
    pipes = select.poll()
    for stream in (sys.stdout, sys.stderr):
        # Not a stream of another kind, as of a test.
        with contextlib.suppress(OSError, ValueError):
            pipes.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in pipes.poll(0))


def _on_exception(
    kind: type[BaseException], error: BaseException, where: TracebackType | None
) -> None:
    end(error)


def _on_thread_exception(args: threading.ExceptHookArgs) -> None:
    # Other threads may still finish the work, so that the job continues.
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        message, _ = _describe(args.exc_value)
        name = args.thread.name if args.thread else "a thread"
        say("error", f"{message} It ended the thread {name}; the job continues.")


def _on_unraisable(args: "sys.UnraisableHookArgs") -> None:
    if isinstance(args.exc_value, KeyboardInterrupt):
        # It arrived in a finalizer, where Python drops exceptions; so it is raised once more, by
        # another thread, since this hook is a part of the finalizer.
        main = threading.main_thread().ident or 0
        threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
        return
    sys.__unraisablehook__(args)
