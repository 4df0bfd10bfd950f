"""Builds the AWS Lambda function's package: a zip of the model, the serving code and its packages.

    python deploy/lambda/package.py --onnx export/model.onnx
    python deploy/lambda/package.py --model models:/drone-classifier@champion --architecture arm64

Writes the folder `package` and `function.zip` to --out. The packages are wheels for Lambda's Linux
in the versions and with the hashes of requirements.lock, whatever machine builds. The build is
reproducible: the same model, code and versions give the same zip, byte for byte.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ray_jobs import bug_report

bug_report.install(__name__)

import onnx

from drone.errors import ConfigError, DroneError
from drone.serving.checksum import check_exported
from drone.serving.predictor import Predictor
from ray_jobs import cli
from ray_jobs.console import show, table

_HANDLER_MODULE = "drone.serving.lambda_handler"
_PACKAGES = ("numpy", "pillow", "onnxruntime", "python-multipart")

_CODE = (
    "drone/__init__.py",
    "drone/errors.py",
    "drone/labels.py",
    "drone/redaction.py",
    "drone/serving/*.py",
)
"""Modules of the project that are packaged, by pattern."""

_PRUNED = (
    "bin",
    "numpy/**/tests",
    "numpy/_core/include",
    "numpy/_core/lib",
    "numpy/f2py",
    "onnxruntime/tools",
    "onnxruntime/transformers",
    "onnxruntime/quantization",
    "onnxruntime/datasets",
    "onnxruntime/backend",
    # The library for C programs; the Python module has its own copy of the engine.
    "onnxruntime/capi/libonnxruntime.so*",
    "onnxruntime/capi/training",
    "onnxruntime/*.txt.gz",
    "**/*.pyi",
    "**/*.pxd",
    "**/*.h",
    "**/*.a",
    # File lists and checksums, which pruning makes wrong; licences stay.
    "*.dist-info/RECORD",
    "*.dist-info/INSTALLER",
    "*.dist-info/REQUESTED",
    "*.dist-info/direct_url.json",
    "**/__pycache__",
)
"""Files that no request reads, by pattern."""

_FORBIDDEN = ("torch", "torchvision", "ray", "mlflow", "pandas", "scipy", "sympy", "boto3")
"""Packages that would only be included by mistake, or are part of Lambda's runtime."""

MAX_UNZIPPED_MB = 250
"""Lambda's limit for the unzipped package."""

MAX_ZIPPED_MB = 50
"""Lambda's limit for a direct upload; a larger zip must go through S3, as with `osls deploy`."""

_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
"""Platform tags of wheels that run on Lambda's Amazon Linux 2023, which has glibc 2.34."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """Arguments of the build."""

    onnx: Path | None = None
    """Exported model to package."""

    model: str | None = None
    """Registered model to package instead, such as models:/drone-classifier@champion."""

    out: Path = ROOT / "build" / "lambda"
    """Output folder; an earlier build in it is replaced."""

    architecture: Literal["x86_64", "arm64"] = "x86_64"
    """Architecture of the function; arm64 is Graviton."""

    python: str = "3.13"
    """Version of Lambda's Python."""

    experiment: str = "drone"
    """MLflow experiment, for --model."""

    json: bool = False
    """Print the sizes as one JSON object, last on stdout."""

    def __post_init__(self) -> None:
        if (self.onnx is None) == (self.model is None):
            raise ConfigError("Name the model to package: either --onnx FILE or --model URI.")
        if self.onnx is not None and not self.onnx.is_file():
            raise ConfigError(f"There is no file {self.onnx} for --onnx.")


def main(job: Package) -> cli.Result:
    """Builds the package, checks it and reports its sizes."""
    folder, archive = job.out / "package", job.out / "function.zip"
    with tempfile.TemporaryDirectory() as temporary:
        source, identity = resolve_model(job, Path(temporary))
        model = Path(temporary) / "named.onnx"
        write_model(source, model, identity)
        shutil.rmtree(folder, ignore_errors=True)
        archive.unlink(missing_ok=True)  # If this build fails, no older zip is deployed by mistake.
        folder.mkdir(parents=True)
        shutil.copyfile(model, folder / "model.onnx")
    install(folder, job)
    prune(folder)
    copy_code(folder)
    python = find_python(job.python)
    if python is None:
        show(
            f"No Python {job.python} was found: the package has no .pyc files and starts more "
            f"slowly. Install it (pyenv install {job.python}), or set --python."
        )
    else:
        compile_code(folder, python)
    runs_here = python is not None and host_architecture() == job.architecture
    # Wheels of another architecture or version cannot be imported on this machine.
    if runs_here:
        try_import(folder, str(python))
    check(folder)
    write_zip(folder, archive)
    return report(folder, archive, {"imported": runs_here, "compiled": python is not None})


def install(folder: Path, job: Package) -> None:
    """Installs the packages into the folder.

    Raises:
        DroneError: Pip cannot download them.
    """
    machine = "aarch64" if job.architecture == "arm64" else "x86_64"
    platforms = [f"--platform={name}_{machine}" for name in _PLATFORMS]
    # Without dependencies: onnxruntime's other ones are used only by its converters and tools.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    command += ["--disable-pip-version-check", "--target", str(folder), "--only-binary=:all:"]
    command += ["--implementation=cp", f"--python-version={job.python}", *platforms]
    with tempfile.TemporaryDirectory() as temporary:
        requirements = Path(temporary) / "requirements.txt"
        requirements.write_text(pinned_requirements(), "utf-8")
        command += ["--require-hashes", "--requirement", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        show(*done.stderr.strip().splitlines())
        raise DroneError(
            f"pip cannot download the function's packages for Python {job.python}; its own "
            f"messages are above."
        )


def pinned_requirements() -> str:
    """Returns the function's packages as requirements.lock has them: versions and hashes."""
    # The hashes of a package are on indented lines of their own.
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text("utf-8"))
    return "\n".join(entry for entry in entries if entry.split("==")[0] in _PACKAGES)


def prune(folder: Path) -> None:
    """Removes the files that no request reads."""
    for pattern in _PRUNED:
        for path in list(folder.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def copy_code(folder: Path) -> None:
    """Copies the project's own modules into the folder."""
    for pattern in _CODE:
        for source in ROOT.glob(pattern):
            target = folder / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def resolve_model(job: Package, folder: Path) -> tuple[Path, dict[str, str]]:
    """Returns the exported model, and its registered name and version if it has them."""
    if job.onnx is not None:
        check_exported(job.onnx)
        return job.onnx, {}
    from drone.tracking import model as mlflow_model
    from drone.tracking import runs as tracking

    tracking.connect(job.experiment)
    registered = mlflow_model.resolve_model(job.model, None)
    onnx = mlflow_model.fetch_onnx(registered, folder)
    return onnx, {"name": registered.name, "version": registered.version}


def write_model(source: Path, target: Path, identity: Mapping[str, str]) -> None:
    """Copies the model and adds its name and version to its metadata.

    The graph is not optimised here but when it is loaded. At build time the optimisations that
    depend on the processor must be left out, which doubles the latency (docs/lambda.md).

    Raises:
        RunError: The file is not a model.
    """
    metadata = Predictor(source).metadata
    model = onnx.load(source)
    onnx.helper.set_model_props(model, {**metadata, **identity})
    onnx.save(model, target)


def find_python(version: str) -> str | None:
    """Returns an interpreter of this version, on the PATH or of pyenv; None if there is none."""
    folders = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}*/bin"))
    names = [sys.executable, f"python{version}", *[str(folder / "python") for folder in folders]]
    for name in names:
        command = [name, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            continue
        if done.stdout.strip() == version:
            return name
    return None


def compile_code(folder: Path, python: str) -> None:
    """Compiles all modules: Lambda's folder is read-only, so Python could not cache them there."""
    command = [python, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    # Tracebacks then name the paths on Lambda, not those of the build.
    command += ["-s", str(folder), "-p", "/var/task", str(folder)]
    # The order of sets ends up in the .pyc files, which must be reproducible.
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def write_zip(folder: Path, archive: Path) -> None:
    """Zips the folder with fixed order, times and permissions: same content, same bytes."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for file in list_files(folder):
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, so that the following permissions apply.
            entry.external_attr = 0o100644 << 16
            packed.writestr(entry, file.read_bytes())


def list_files(folder: Path) -> Iterator[Path]:
    """Yields all files below a folder, sorted by path."""
    yield from sorted((path for path in folder.rglob("*") if path.is_file()), key=Path.as_posix)


def check(folder: Path) -> None:
    """Checks that Lambda accepts the package and that it contains nothing by mistake.

    Raises:
        DroneError: It is too large, or contains a forbidden package.
    """
    forbidden = [name for name in _FORBIDDEN if (folder / name).exists()]
    if forbidden:
        names = ", ".join(forbidden)
        raise DroneError(f"The package contains {names}, which the function does not need.")
    unzipped = sum(file.stat().st_size for file in list_files(folder)) / 1e6
    if unzipped > MAX_UNZIPPED_MB:
        raise DroneError(
            f"The package has {unzipped:.0f} MB unzipped, and Lambda's limit is {MAX_UNZIPPED_MB} "
            f"MB. Keep the model in S3 instead (docs/lambda.md)."
        )


def host_architecture() -> str:
    """Returns this machine's architecture by Lambda's name for it."""
    return {"aarch64": "arm64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())


def try_import(folder: Path, python: str) -> None:
    """Imports the function from its folder, without any other installed packages.

    Raises:
        DroneError: The import fails.
    """
    # -S hides this machine's packages, which could stand in for one that was pruned.
    command = [python, "-S", "-B", "-c", f"import {_HANDLER_MODULE}"]
    # Few variables: PYTHONPATH or DRONE_MODEL would let it import or load something else.
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        show(*done.stderr.strip().splitlines())
        raise DroneError("The packaged function does not start; see its messages above.")


def report(folder: Path, archive: Path, checks: Mapping[str, bool]) -> cli.Result:
    """Prints a table of sizes, largest first, and returns the totals.

    Args:
        folder: Unzipped package.
        archive: The zip of it.
        checks: Whether the function was "imported" and "compiled" here; part of the result.
    """
    sizes: dict[str, list[float]] = {}
    with zipfile.ZipFile(archive) as packed:
        for entry in packed.infolist():
            size = sizes.setdefault(entry.filename.split("/")[0], [0.0, 0.0])
            size[0] += entry.file_size / 1e6
            size[1] += entry.compress_size / 1e6
    largest = sorted(sizes.items(), key=lambda item: -item[1][0])
    rows = [[name, *[f"{value:.1f}" for value in size]] for name, size in largest if size[0] > 0.1]
    unzipped = sum(size[0] for size in sizes.values())
    zipped = archive.stat().st_size / 1e6
    rows.append(["all", f"{unzipped:.1f}", f"{zipped:.1f}"])
    table(f"{archive}", ["", "MB", "MB zipped"], rows)
    if zipped > MAX_ZIPPED_MB:
        show(f"{zipped:.1f} MB zipped: above {MAX_ZIPPED_MB} it must go through S3.")
    if not checks["imported"]:
        show("It was not imported here: no Python of its version and architecture.")
    return {
        "zip": str(archive),
        "folder": str(folder),
        "unzipped_mb": round(unzipped, 1),
        "zipped_mb": round(zipped, 1),
        **checks,
    }


if __name__ == "__main__":
    cli.start(Package, main, __doc__)
