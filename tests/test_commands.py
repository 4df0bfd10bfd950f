"""Commands in messages are typed as they are shown."""

import os
import subprocess

import pytest

from drone.commands import command, quoted

HOSTILE = [
    *("a b", "o'hara", 'a"b', "$HOME", "`id`", "a;b", "*", "[v2]", "~", "#x", "!!", "a\\b", "é 🛸"),
    *("a\nb", "a\tb'c\\", "\x1b[2J", "\u2028", os.fsdecode(b"caf\xe9.png"), ""),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_the_shell_reads_an_argument_as_it_was(name: str) -> None:
    line = quoted(name)
    assert line.isprintable()
    done = subprocess.run(["bash", "-c", f"printf %s {line}"], capture_output=True, check=True)
    assert os.fsdecode(done.stdout) == name


def test_no_value_is_read_as_a_flag() -> None:
    assert command("evaluate", run="-x") == "python ray_jobs/evaluate.py --run=-x"
    line = command("prepare", raw=["-a", "b c"], out="-d", dry_run=True, bins=False, diff=None)
    assert line == "python ray_jobs/prepare.py --raw ./-a 'b c' --out=-d --dry-run"


def test_a_name_that_no_file_can_have() -> None:
    assert quoted("a\ud800\n").isprintable()
