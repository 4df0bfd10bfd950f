"""How the C library's allocator keeps memory."""

import contextlib
import ctypes
import os

_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
"""Numbers of mallopt's parameters in glibc's malloc.h."""

_SETTINGS = (
    ("MALLOC_ARENA_MAX", _M_ARENA_MAX, 2),
    ("MALLOC_MMAP_THRESHOLD_", _M_MMAP_THRESHOLD, 2**20),
)


def limit_kept_memory() -> None:
    """Lets this process return the memory of decoded images when they are freed.

    By default glibc keeps it, in an arena for each thread: after 200 images of 25 million pixels a
    server held gigabytes. Environment variables of the same meaning take precedence. Other C
    libraries are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for variable, parameter, value in _SETTINGS:
            if variable not in os.environ:
                mallopt(parameter, value)


def return_freed_memory() -> None:
    """Returns what lies free between blocks in use; takes milliseconds."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
