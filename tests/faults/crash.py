"""Kills a process before each of its changes to the file system."""

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")
_KILLED, _FAILED = 66, 67


def killed_at_every_step(
    prepare: Callable[[], None], action: Callable[[], object], max_steps: int = 500
) -> Iterator[int]:
    """Kills an action before its first change, then before its second, and so on.

    Args:
        prepare: Called before each attempt, to put everything back as it was.
        action: Runs in a child process.
        max_steps: Fails when the action is still not through after as many.

    Yields:
        The number of the step, each time the action was killed.
    """
    for step in range(max_steps):
        prepare()
        status = _run(action, step)
        if status == 0:
            assert step > 1, "the action changes nothing"
            return
        assert status == _KILLED, f"the action failed in step {step}"
        yield step
    raise AssertionError(f"not through after {max_steps} steps")


def _run(action: Callable[[], object], step: int) -> int:
    """Returns the exit code of a child process that is killed before a step."""
    child = os.fork()
    if child == 0:
        _kill_before(step)
        try:
            action()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(_FAILED)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _kill_before(step: int) -> None:
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        # Removing bytecode files is Python's own business.
        writes = event == "open" and isinstance(args[2], int) and args[2] & _WRITES
        if writes or event in _CHANGES or event == "ctypes.dlsym":
            if count == step:
                # As by SIGKILL: what is in buffers is lost, nothing is cleaned up.
                os._exit(_KILLED)
            count += 1

    sys.addaudithook(hook)
