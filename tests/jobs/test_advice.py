"""What messages advise: each command has flags that its job takes, and each flag exists."""

import ast
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.jobs.test_command_line import JOBS, parsed

SOURCES = [
    file
    for folder in ("drone", "ray_jobs", "deploy")
    for file in sorted((ROOT / folder).rglob("*.py"))
]

BUILDERS = {
    "command": [],
    "command_for": ["prepare", "--raw", "x", "--out", "x"],
    "promote_command": ["promote"],
    "train_command": ["train", "finetune", "--data", "x"],
}
"""Functions that return a command, and how it begins."""

VALUES = {"add_trials": "3", "num_trials": "3", "epochs": "3"}
"""What stands for a value that is only known when the message is made; else "x"."""

WRITTEN = re.compile(r"python ray_jobs/(\w+)\.py((?: +--?[\w.-]+(?: [\w.]+)?)+)")

FOREIGN_FLAGS = {"--num-gpus", "--run-id", "--experiment-id", "--data-binary"}
"""Flags of the commands of Ray, MLflow and curl."""


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for file in SOURCES:
        if file.name != "commands.py":
            yield file, ast.parse(file.read_text())


def text_of(node: ast.AST, value: str = "x") -> str:
    """A string as it may be at run time; what is filled in becomes a value."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part, value) for part in node.values)
    return value


def built_commands() -> Iterator[tuple[str, list[str]]]:
    """Each command that a message is built with: where it is, and the job with its arguments."""
    for file, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            # The rest of a command may come from elsewhere, as in the builders themselves.
            is_whole = all(keyword.arg for keyword in node.keywords) and not any(
                isinstance(argument, ast.Starred) for argument in node.args
            )
            if name not in BUILDERS or not is_whole:
                continue
            words = list(BUILDERS[name])
            if name == "command":
                words += [text_of(argument, "finetune") for argument in node.args]
            # The file of --config would be read.
            for keyword in [keyword for keyword in node.keywords if keyword.arg != "config"]:
                words.append(f"--{str(keyword.arg).replace('_', '-')}")
                if not (isinstance(keyword.value, ast.Constant) and keyword.value.value is True):
                    words.append(text_of(keyword.value, VALUES.get(str(keyword.arg), "x")))
            yield f"{file.relative_to(ROOT)}:{node.lineno}", words


def written_commands() -> Iterator[tuple[str, list[str]]]:
    """Each command that is written out in a message."""
    for file, tree in trees():
        for line, text in messages(tree):
            for found in re.findall(
                r"python ray_jobs/(\w+)\.py((?: +--?[\w.-]+(?: [\w.]+)?)+)", text
            ):
                args = shlex.split(found[1].rstrip("."))
                yield f"{file.relative_to(ROOT)}:{line}", [found[0], *args]


def messages(tree: ast.Module, value: str = "x") -> Iterator[tuple[int, str]]:
    """The strings of a module that are no docstrings, with a value for what is filled in."""
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, text_of(node, value)
        elif isinstance(node, ast.Constant) and id(node) not in docstrings:
            yield node.lineno, str(node.value)


@pytest.mark.parametrize(
    ("where", "words"), [pytest.param(*found, id=found[0]) for found in built_commands()]
)
def test_a_command_that_is_advised_parses(where: str, words: list[str]) -> None:
    job, *args = words
    assert parsed(job, args) is not None


def test_commands_that_are_written_out_parse() -> None:
    found = list(written_commands())
    for where, (job, *args) in found:
        if args != ["--help"]:
            assert parsed(job, args) is not None, where
    assert len(list(built_commands())) > 15 and found


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """Every flag of every job."""
    shown: set[str] = set()
    for job in JOBS:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
            parsed(job, ["--help"])
        shown |= set(re.findall(r"--[\w.-]+", output.getvalue()))
    return shown


def test_flags_that_are_named_exist(flags: set[str]) -> None:
    for file, tree in trees():
        if "lambda" in file.parts or file.parent == ROOT / "deploy":
            continue
        kinds = (ast.Raise, ast.Return, ast.Expr)
        for node in [node for node in ast.walk(tree) if isinstance(node, kinds)]:
            # A docstring may name anything.
            if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Call):
                continue
            for line, text in messages(ast.Module([node], []), value="..."):
                for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*(?:\.[a-z][\w-]*)*", text):
                    assert flag in flags | FOREIGN_FLAGS, f"{file}:{line} names {flag}"


def test_jobs_are_named_as_they_are_typed() -> None:
    for file, tree in trees():
        for line, text in messages(tree):
            for found in re.finditer(rf"[\w/ ]*\b(?:{'|'.join(JOBS)})\.py\b", text):
                # A bare file name is a path in the program, not a sentence.
                if " " in text.strip():
                    assert "python ray_jobs/" in found[0], f"{file}:{line} says {found[0]!r}"
