"""What serving imports: its packages fit a Lambda function and a small container."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

ALLOWED = {
    *sys.stdlib_module_names,
    "numpy",
    "PIL",
    "onnxruntime",
    "python_multipart",
    "drone.labels",
    "drone.errors",
    "drone.serving",
}
ALSO_ALLOWED = {
    "http.py": {"starlette"},
    "connections.py": {"uvicorn", "h11"},
    "metrics.py": {"prometheus_client"},
}
ONLY_INSIDE_FUNCTIONS = {
    "lambda_handler.py": {"boto3", "botocore"},
    "lambda_keeping.py": {"boto3", "botocore"},
    "preprocess.py": {"pillow_heif"},
}
"""Part of Lambda's own runtime; and a package that reads HEIC where it is installed."""

MODULES = sorted((ROOT / "drone" / "serving").glob("**/*.py"))


def imports_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports here are absolute"
            # `from drone import labels` names the module only in its aliases.
            aliases = node.names if node.module == "drone" else []
            yield from ([f"drone.{alias.name}" for alias in aliases] or [str(node.module)])


def package_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "drone" else parts[0]


def imported_packages(file: Path) -> set[str]:
    """Returns the packages that a module imports, without those allowed inside its functions."""
    tree = ast.parse(file.read_text())
    packages = [package_of(module) for module in imports_in(tree)]
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for module in imports_in(function):
                if package_of(module) in ONLY_INSIDE_FUNCTIONS.get(file.name, ()):
                    packages.remove(package_of(module))
    return set(packages)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.name)
def test_serving_imports_only_what_its_docstring_says(file: Path) -> None:
    assert imported_packages(file) <= ALLOWED | ALSO_ALLOWED.get(file.name, set())


def test_each_allowed_package_is_needed_and_named() -> None:
    imported = set().union(*(imported_packages(file) for file in MODULES))
    needed = {"numpy", "PIL", "onnxruntime", "python_multipart"}
    assert imported - set(sys.stdlib_module_names) == {
        *needed,
        "starlette",
        "uvicorn",
        "h11",
        "prometheus_client",
        "drone.labels",
        "drone.errors",
        "drone.serving",
    }
    docstring = ast.get_docstring(ast.parse((ROOT / "drone/serving/__init__.py").read_text()))
    packages = ("numpy", "pillow", "onnxruntime", "python-multipart")
    for name in (*packages, "starlette", "uvicorn", "prometheus-client"):
        assert docstring and name in docstring


@pytest.mark.parametrize(
    "module",
    [
        "drone.serving.predictor",
        "drone.serving.http",
        # What `serve.py --onnx FILE` imports: a cold start of half a second depends on it.
        "ray_jobs.serve, drone.workflows.serving",
    ],
)
def test_serving_loads_no_training_library(module: str) -> None:
    slow = ("torch", "mlflow", "ray", "pandas")
    code = f"import sys, {module}; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
