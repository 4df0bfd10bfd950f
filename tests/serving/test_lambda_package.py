"""The Lambda function's package, built once and run as in the cloud.

For the full matrix of images see test_preprocess.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from drone.labels import CLASSES
from drone.serving.predictor import Predictor
from tests.conftest import ROOT, restored_process
from tests.serving import hostile
from tests.serving.lambda_events import (
    ENCODINGS,
    IMAGE,
    SIDE,
    SOURCES,
    content,
    function_url,
    http_api,
    rest,
)
from tests.serving.lambda_host import LambdaHost

OFFLINE = re.compile(r"Temporary failure|NewConnectionError|Connection refused|timed out|resolve")


@pytest.fixture(scope="module")
def exported(linear: Path) -> Path:
    return linear


@dataclass(frozen=True)
class Built:
    folder: Path
    archive: Path
    result: dict
    log: str


def load_packager() -> ModuleType:
    spec = importlib.util.spec_from_file_location("packager", ROOT / "deploy/lambda/package.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["packager"] = module
    spec.loader.exec_module(module)
    return module


packager = load_packager()


@pytest.fixture(scope="module")
def version() -> str:
    """Version of Lambda's Python, or of this one where that is not installed."""
    return "3.13" if packager.find_python("3.13") else ".".join(map(str, sys.version_info[:2]))


@pytest.fixture(scope="module")
def built(exported: Path, version: str, tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("lambda")
    args = ["--onnx", str(exported), "--out", str(out), "--python", version, "--json"]
    command = [sys.executable, str(ROOT / "deploy" / "lambda" / "package.py"), *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and OFFLINE.search(done.stderr):
        pytest.skip("PyPI cannot be reached for the function's packages")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    return Built(Path(result["folder"]), Path(result["zip"]), result, done.stderr)


@pytest.fixture(scope="module")
def unpacked(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the zip, as Lambda unpacks it."""
    task = tmp_path_factory.mktemp("task")
    with zipfile.ZipFile(built.archive) as packed:
        packed.extractall(task)
    return task


def test_what_is_in_the_package(built: Built) -> None:
    with zipfile.ZipFile(built.archive) as packed:
        entries = packed.infolist()
    names = [entry.filename for entry in entries]
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert {"drone", "numpy", "PIL", "onnxruntime", "python_multipart", "model.onnx"} <= tops
    assert not tops & {"torch", "torchvision", "ray", "mlflow", "pandas", "sympy", "boto3", "bin"}
    assert {name for name in names if name.startswith("drone/") and name.endswith(".py")} == {
        "drone/__init__.py",
        "drone/errors.py",
        "drone/labels.py",
        "drone/redaction.py",
        *(f"drone/serving/{file.name}" for file in (ROOT / "drone/serving").glob("*.py")),
    }
    assert not [name for name in names if "/tests/" in name or name.endswith((".h", ".pyi"))]
    assert any(
        name.endswith("LICENSE") for name in names
    )  # Redistributed packages keep their licences.
    assert built.result["unzipped_mb"] < 130
    assert built.result["zipped_mb"] < 50
    assert names == sorted(names)
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.external_attr >> 16 for entry in entries} == {0o100644}
    assert re.search(r"onnxruntime +│ +\d", built.log) and re.search(r"all +│ +\d", built.log)


def test_versions_are_those_of_the_requirements(built: Built) -> None:
    required = (ROOT / "requirements.txt").read_text()
    for name in ("numpy", "pillow", "onnxruntime"):
        folder = next(built.folder.glob(f"{name}-*.dist-info"))
        assert f"{name}=={folder.name.removesuffix('.dist-info').split('-')[1]} " in required


def test_modules_are_compiled_for_a_read_only_folder(built: Built) -> None:
    if not built.result["compiled"]:
        pytest.skip("no Python of Lambda's version to compile with")
    sources = {path.stem for path in (built.folder / "drone" / "serving").glob("*.py")}
    compiled = list((built.folder / "drone" / "serving" / "__pycache__").glob("*.pyc"))
    assert {path.name.split(".")[0] for path in compiled} == sources
    for path in compiled:
        code = path.read_bytes()
        assert int.from_bytes(code[4:8], "little") == 1  # By hash, unchecked.
        assert b"/var/task/drone/serving" in code and str(built.folder).encode() not in code


def test_the_same_content_gives_the_same_zip(built: Built, tmp_path: Path) -> None:
    small = tmp_path / "package"
    for name in ("drone", "python_multipart"):
        shutil.copytree(built.folder / name, small / name)
    packager.write_zip(small, tmp_path / "one.zip")
    for file in small.rglob("*"):
        os.utime(file, (0, 0))
        file.chmod(0o700)
    packager.write_zip(small, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_the_packaged_model_is_the_model(built: Built, exported: Path) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    packaged = Predictor(built.folder / "model.onnx")
    plain = Predictor(exported)
    assert packaged.metadata == plain.metadata
    probs = packaged.predict_pixels(pixels)
    np.testing.assert_allclose(probs, plain.predict_pixels(pixels), atol=1e-5)


@pytest.mark.slow
def test_a_registered_model_is_packaged_under_its_name_and_version(
    built: Built,
    exported: Path,
    version: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import mlflow

    from drone.tracking import registry
    from drone.tracking.model import log_model

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_experiment("packages")  # Another test may have left its own.
    for _ in range(2):
        with mlflow.start_run() as run:
            log_model(exported, CLASSES, {})
        registry.register("fly", run.info.run_id, {})
    mlflow.MlflowClient().set_registered_model_alias("fly", "champion", "2")

    def install(folder: Path, _: object) -> None:
        """Copies the packages that pip has already installed."""
        shutil.copytree(built.folder, folder, dirs_exist_ok=True, ignore=not_packages)

    def not_packages(folder: str, _: list[str]) -> set[str]:
        return {"drone", "model.onnx"} if Path(folder) == built.folder else set()

    monkeypatch.setattr(packager, "install", install)
    args = ["--model", "models:/fly@champion", "--out", str(tmp_path / "out"), "--json"]
    monkeypatch.setattr(sys, "argv", ["package.py", *args, "--python", version])
    with restored_process(), pytest.raises(SystemExit) as end:
        packager.cli.start(packager.Package, packager.main)
    assert end.value.code == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    with zipfile.ZipFile(result["zip"]) as packed:
        packed.extract("model.onnx", tmp_path)
    packaged, plain = Predictor(tmp_path / "model.onnx"), Predictor(exported)
    assert packaged.metadata == {**plain.metadata, "name": "fly", "version": "2"}
    pixels = np.random.default_rng(6).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    np.testing.assert_allclose(
        packaged.predict_pixels(pixels), plain.predict_pixels(pixels), atol=1e-5
    )


@pytest.mark.parametrize(
    ("variable", "option"),
    [
        ("ONNX=my model.onnx", ["--onnx", "my model.onnx"]),
        ("MODEL=models:/fly@champion", ["--model", "models:/fly@champion"]),
    ],
)
def test_make_passes_its_variables_on(variable: str, option: list[str]) -> None:
    command = ["make", "-n", "lambda", variable, "ARCHITECTURE=arm64"]
    # `make test` runs this test, and an inner make would then print its folders.
    alone = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=True)
    last = shlex.split(done.stdout.replace("\\\n", "").splitlines()[-1])
    assert last[1:] == ["deploy/lambda/package.py", "--architecture", "arm64", *option]


def test_a_package_that_lambda_would_reject_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, archive = tmp_path / "package", tmp_path / "function.zip"
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "x").write_bytes(np.random.default_rng(0).bytes(2_000_000))
    with pytest.raises(packager.DroneError, match="contains torch"):
        packager.check(folder)
    (folder / "torch").rename(folder / "own")
    packager.check(folder)
    monkeypatch.setattr(packager, "MAX_ZIPPED_MB", 1)
    packager.write_zip(folder, archive)
    packager.report(folder, archive, {"imported": True, "compiled": True})
    assert "must go through S3" in capsys.readouterr().out
    monkeypatch.setattr(packager, "MAX_UNZIPPED_MB", 1)
    with pytest.raises(packager.DroneError, match="Lambda's limit is 1"):
        packager.check(folder)
    with pytest.raises(packager.DroneError, match="does not start"):
        packager.try_import(tmp_path, sys.executable)


def test_a_failed_build_leaves_no_older_zip_to_deploy(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise packager.DroneError("pip cannot download the function's packages")

    monkeypatch.setattr(packager, "install", fail)
    (tmp_path / "function.zip").write_bytes(b"an older build")
    with pytest.raises(packager.DroneError, match="pip cannot"):
        packager.main(packager.Package(onnx=exported, out=tmp_path))
    assert not (tmp_path / "function.zip").exists()
    # An invalid model is found before anything is deleted.
    (tmp_path / "function.zip").write_bytes(b"an older build")
    (tmp_path / "no.onnx").write_bytes(b"no model")
    with pytest.raises(packager.DroneError, match="is not a model"):
        packager.main(packager.Package(onnx=tmp_path / "no.onnx", out=tmp_path))
    assert (tmp_path / "function.zip").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "either --onnx FILE or --model URI"),
        (["--onnx", "none.onnx"], "There is no file none.onnx"),
    ],
)
def test_wrong_usage(args: list[str], message: str) -> None:
    command = [sys.executable, str(ROOT / "deploy" / "lambda" / "package.py"), *args]
    wide = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=wide)
    assert done.returncode == 2 and message in done.stderr


@pytest.fixture(scope="module")
def client(version: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with AWS's runtime client for the version of Python."""
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    requirement = next(line.split()[0] for line in lines if line.startswith("awslambdaric=="))
    target = tmp_path_factory.mktemp("client")
    command = [packager.find_python(version), "-m", "pip", "install", "--quiet", requirement]
    command += ["--only-binary=:all:", "--target", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no {requirement} for Python {version}: {done.stderr.strip()[-200:]}")
    return target


@pytest.fixture
def host(unpacked: Path, client: Path, version: str) -> Iterator[Callable[..., LambdaHost]]:
    started: list[LambdaHost] = []

    def start(**environment: str) -> LambdaHost:
        python = packager.find_python(version)
        started.append(LambdaHost(python, unpacked, client, **environment))
        return started[-1]

    yield start
    for running in started:
        running.close()


def test_it_runs_under_lambdas_own_runtime(
    host: Callable[..., LambdaHost], function: ModuleType, exported: Path
) -> None:
    running = host()
    expected = Predictor(exported, threads=1).predict(IMAGE)
    for source in SOURCES:
        for encoded in ENCODINGS.values():
            outcome = running.invoke(source("POST", "/predict", *encoded))
            assert outcome.kind == "response", outcome
            body = content(outcome.content)
            assert body["label"] == expected.label
            assert body["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
    for name, (image, status) in hostile.representatives().items():
        outcome = running.invoke(http_api("POST", "/predict", "image/jpeg", image))
        assert outcome.content["statusCode"] == status, name
    log = running.close()
    assert "POST /predict 200" in log
    assert "Traceback" not in log


def test_it_starts_under_snapstart(host: Callable[..., LambdaHost]) -> None:
    running = host(AWS_LAMBDA_INITIALIZATION_TYPE="snap-start")
    outcome = running.invoke(function_url("POST", "/predict", "image/png", IMAGE))
    assert outcome.content["statusCode"] == 200


def test_a_function_without_its_model_reports_it(
    host: Callable[..., LambdaHost], tmp_path: Path
) -> None:
    running = host(DRONE_MODEL=str(tmp_path / "none.onnx"))
    outcome = running.invoke(rest("GET", "/health"))
    assert outcome.kind == "error"
    assert "none.onnx is not a model that can be loaded" in outcome.content["errorMessage"]
