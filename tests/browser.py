"""A real browser for the tests of pages."""

import contextlib
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser whose camera is made up; where there is none, the test is skipped.

    While it is open asyncio cannot run in the same process, so tests of other modules must wait.
    """
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=_OPTIONS)
        yield launched
        launched.close()
