"""Builds the AWS Lambda function: a zip with the model, the code that serves it and its packages.

    python deploy/lambda/package.py --onnx export/model.onnx
    python deploy/lambda/package.py --model models:/drone-classifier@champion --architecture arm64

Writes the folder `package` and `function.zip` below --out. The packages are wheels for Lambda's
Linux, in the versions of requirements.txt, whatever machine this runs on. The same model, code and
versions give the same zip, byte for byte.
"""

import os
import platform
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

import onnx

from drone.errors import ConfigError, DroneError
from drone.serving.predictor import Predictor
from ray_jobs import cli

HANDLER = "drone.serving.lambda_handler"
PACKAGES = ("numpy", "pillow", "onnxruntime", "python-multipart")

CODE = ("drone/__init__.py", "drone/errors.py", "drone/labels.py", "drone/serving/*.py")
"""What of the project goes in."""

PRUNED = (
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
    # For programs in C; Python's module has the engine inside.
    "onnxruntime/capi/libonnxruntime.so*",
    "onnxruntime/capi/training",
    "onnxruntime/*.txt.gz",
    "**/*.pyi",
    "**/*.pxd",
    "**/*.h",
    "**/*.a",
    # Lists of files and checksums that are no longer true; licences stay.
    "*.dist-info/RECORD",
    "*.dist-info/INSTALLER",
    "*.dist-info/REQUESTED",
    "*.dist-info/direct_url.json",
    "**/__pycache__",
)
"""What nothing here reads, by pattern."""

UNWANTED = ("torch", "torchvision", "ray", "mlflow", "pandas", "scipy", "sympy", "boto3")
"""What would come in by mistake, and Lambda's own."""

MOST_UNZIPPED_MB = 250
"""Lambda takes no more."""

MOST_ZIPPED_MB = 50
"""More has to go by way of S3, which `osls deploy` always does."""

PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
"""Wheels that run on Lambda's Amazon Linux 2023, which has glibc 2.34."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """Arguments."""

    onnx: Path | None = None
    """Exported model."""

    model: str | None = None
    """Registered model instead, such as models:/drone-classifier@champion."""

    out: Path = ROOT / "build" / "lambda"
    """Folder to write to; what an earlier build left there is replaced."""

    architecture: Literal["x86_64", "arm64"] = "x86_64"
    """Of the function; arm64 is Graviton."""

    python: str = "3.13"
    """Version of Lambda's Python."""

    experiment: str = "drone"
    """Experiment in MLflow, for --model."""

    json: bool = False
    """Print the sizes as one JSON object, last."""

    def __post_init__(self) -> None:
        if (self.onnx is None) == (self.model is None):
            raise ConfigError("Name what is to answer: either --onnx FILE or --model URI.")
        if self.onnx is not None and not self.onnx.is_file():
            raise ConfigError(f"There is no file {self.onnx} for --onnx.")


def main(job: Package) -> cli.Result:
    """Builds, checks and measures."""
    folder, archive = job.out / "package", job.out / "function.zip"
    with tempfile.TemporaryDirectory() as temporary:
        source, facts = model_of(job, Path(temporary))
        model = Path(temporary) / "named.onnx"
        write_model(source, model, facts)
        shutil.rmtree(folder, ignore_errors=True)
        archive.unlink(missing_ok=True)  # If this build fails, an older one is not deployed for it.
        folder.mkdir(parents=True)
        shutil.copyfile(model, folder / "model.onnx")
    install(folder, job)
    prune(folder)
    copy_code(folder)
    python = interpreter(job.python)
    if python is None:
        cli.console.print(f"There is no Python {job.python} here: the package has no .pyc files.")
    else:
        compile_code(folder, python)
    starts = python is not None and machine() == job.architecture
    if starts:
        try_import(folder, str(python))
    check(folder)
    write_zip(folder, archive)
    return report(folder, archive, {"imported": starts, "compiled": python is not None})


def install(folder: Path, job: Package) -> None:
    """Puts the packages into the folder.

    Raises:
        DroneError: pip cannot get them.
    """
    machine_name = "aarch64" if job.architecture == "arm64" else "x86_64"
    wheels = [f"--platform={name}_{machine_name}" for name in PLATFORMS]
    # Of the packages that onnxruntime names, its converters and tools alone need the rest.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    command += ["--disable-pip-version-check", "--target", str(folder), "--only-binary=:all:"]
    command += ["--implementation=cp", f"--python-version={job.python}", *wheels, *pinned()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DroneError(f"pip cannot get the function's packages:\n{done.stderr.strip()}")


def pinned() -> list[str]:
    """The function's packages, in the versions of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    wanted = [line.split("#")[0].strip() for line in lines]
    return [line for line in wanted if line.split("==")[0] in PACKAGES]


def prune(folder: Path) -> None:
    """Removes what nothing in the function reads."""
    for pattern in PRUNED:
        for found in list(folder.glob(pattern)):
            if found.is_dir():
                shutil.rmtree(found)
            else:
                found.unlink(missing_ok=True)


def copy_code(folder: Path) -> None:
    """Puts the project's own modules beside the packages."""
    for pattern in CODE:
        for source in ROOT.glob(pattern):
            target = folder / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def model_of(job: Package, folder: Path) -> tuple[Path, dict[str, str]]:
    """The exported model, and by what name and version people know it."""
    if job.onnx is not None:
        return job.onnx, {}
    from drone.adapters import mlflow_model
    from drone.adapters import mlflow_tracking as tracking

    tracking.connect(job.experiment)
    found = mlflow_model.named(job.model, None)
    onnx = mlflow_model.fetch_onnx(found.run_id, folder)
    return onnx, {"name": found.name, "version": found.version}


def write_model(source: Path, target: Path, facts: Mapping[str, str]) -> None:
    """Writes the model as it is, with its name.

    Its graph is left to be optimised at start. Doing that here would have to stop short of what
    depends on the processor, and then each answer takes twice as long (docs/lambda.md).

    Raises:
        RunError: the file is no model.
    """
    known = Predictor(source).metadata  # Refuses what is no model, and says why.
    model = onnx.load(source)
    onnx.helper.set_model_props(model, {**known, **facts})
    onnx.save(model, target)


def interpreter(version: str) -> str | None:
    """A Python of this version, if there is one."""
    folders = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}*/bin"))
    names = [sys.executable, f"python{version}", *[str(folder / "python") for folder in folders]]
    for name in names:
        tried = [name, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        try:
            done = subprocess.run(tried, capture_output=True, text=True, check=False)
        except OSError:
            continue
        if done.stdout.strip() == version:
            return name
    return None


def compile_code(folder: Path, python: str) -> None:
    """Compiles all modules, as Lambda's folder cannot be written to and its files have no times."""
    command = [python, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    # Tracebacks name files as they lie there, not here.
    command += ["-s", str(folder), "-p", "/var/task", str(folder)]
    # A set's order goes into the file.
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def write_zip(folder: Path, archive: Path) -> None:
    """Packs the folder in a fixed order, with fixed times and rights: same content, same file."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for file in files(folder):
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, whose rights follow: all may read.
            entry.external_attr = 0o100644 << 16
            packed.writestr(entry, file.read_bytes())


def files(folder: Path) -> Iterator[Path]:
    """All files below a folder, in the order of their paths."""
    yield from sorted((path for path in folder.rglob("*") if path.is_file()), key=Path.as_posix)


def check(folder: Path) -> None:
    """Refuses what Lambda would refuse, or what should not be inside.

    Raises:
        DroneError: it is too large, or holds a package that it should not.
    """
    found = [name for name in UNWANTED if (folder / name).exists()]
    if found:
        raise DroneError(f"The package holds {', '.join(found)}, which the function does not need.")
    unzipped = sum(file.stat().st_size for file in files(folder)) / 1e6
    if unzipped > MOST_UNZIPPED_MB:
        raise DroneError(
            f"The package has {unzipped:.0f} MB; Lambda takes {MOST_UNZIPPED_MB} at most."
        )


def machine() -> str:
    """This machine's architecture by Lambda's name for it."""
    return {"aarch64": "arm64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())


def try_import(folder: Path, python: str) -> None:
    """Starts the function from its folder, with no other packages in reach.

    Raises:
        DroneError: it does not start.
    """
    code = f"import {HANDLER}"
    command = [python, "-S", "-B", "-c", code]
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DroneError(f"The packaged function does not start:\n{done.stderr.strip()}")


def report(folder: Path, archive: Path, facts: Mapping[str, bool]) -> cli.Result:
    """Prints a table of sizes, largest first, and returns them."""
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
    cli.table(f"{archive}", ["", "MB", "MB zipped"], rows)
    if zipped > MOST_ZIPPED_MB:
        cli.console.print(f"{zipped:.1f} MB zipped: above {MOST_ZIPPED_MB} it must go through S3.")
    if not facts["imported"]:
        cli.console.print("It was not started here: no Python of its version and architecture.")
    return {
        "zip": str(archive),
        "folder": str(folder),
        "unzipped_mb": round(unzipped, 1),
        "zipped_mb": round(zipped, 1),
        **facts,
    }


if __name__ == "__main__":
    cli.start(Package, main, __doc__)
