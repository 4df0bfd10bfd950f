"""What tests need beyond Python packages, and a summary of what was skipped for lack of it.

A skipped test is a promise that nobody checked, so each reason is printed at the end of a run, with
the command that installs what is missing.
"""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

_PACKAGES = {
    "chromium": "chromium",
    "npm": "npm",
    "ip": "iproute2",
    "rsync": "rsync",
    "ssh": "openssh-client",
    "/usr/sbin/sshd": "openssh-server",
}
"""Debian package by program."""


def missing_packages() -> list[str]:
    """Debian packages of the programs that tests use and this machine lacks."""
    return [
        package
        for program, package in _PACKAGES.items()
        if shutil.which(program) is None and not Path(program).is_file()
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lists why tests were skipped, and how to run them."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    reasons = Counter(_reason(report) for report in skipped)
    terminalreporter.section(f"{len(skipped)} tests were skipped")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:>4}  {reason}")
    packages = missing_packages()
    if packages:
        sudo = "" if os.geteuid() == 0 else "sudo "
        terminalreporter.line(
            f"To run them: {sudo}apt-get install --no-install-recommends {' '.join(packages)}"
        )


def _reason(report: pytest.TestReport) -> str:
    location = report.longrepr
    reason = location[2] if isinstance(location, tuple) else str(location)
    return str(reason).removeprefix("Skipped: ")
