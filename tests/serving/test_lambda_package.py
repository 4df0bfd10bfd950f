"""The Lambda function's package, built once and run as in the cloud."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from drone.serving.predictor import Predictor
from tests.conftest import ROOT
from tests.serving import hostile
from tests.serving.lambda_events import (
    PICTURE,
    SENDERS,
    SIDE,
    WAYS,
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
    facts: dict
    said: str


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
    """Of Lambda's Python, or of this one where there is no other."""
    return "3.13" if packager.interpreter("3.13") else ".".join(map(str, sys.version_info[:2]))


@pytest.fixture(scope="module")
def built(exported: Path, version: str, tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("lambda")
    words = ["--onnx", str(exported), "--out", str(out), "--python", version, "--json"]
    command = [sys.executable, str(ROOT / "deploy" / "lambda" / "package.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and OFFLINE.search(done.stderr):
        pytest.skip("no PyPI in reach to get the function's packages from")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    return Built(Path(facts["folder"]), Path(facts["zip"]), facts, done.stderr)


@pytest.fixture(scope="module")
def unpacked(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zip's content, as Lambda lays it out."""
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
        *(f"drone/serving/{file.name}" for file in (ROOT / "drone/serving").glob("*.py")),
    }
    assert not [name for name in names if "/tests/" in name or name.endswith((".h", ".pyi"))]
    assert any(name.endswith("LICENSE") for name in names)  # What is handed on keeps its licence.
    assert built.facts["unzipped_mb"] < 130
    assert built.facts["zipped_mb"] < 50
    assert names == sorted(names)
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.external_attr >> 16 for entry in entries} == {0o100644}
    assert re.search(r"onnxruntime +│ +\d", built.said) and re.search(r"all +│ +\d", built.said)


def test_versions_are_those_of_the_requirements(built: Built) -> None:
    required = (ROOT / "requirements.txt").read_text()
    for name in ("numpy", "pillow", "onnxruntime"):
        folder = next(built.folder.glob(f"{name}-*.dist-info"))
        assert f"{name}=={folder.name.removesuffix('.dist-info').split('-')[1]} " in required


def test_modules_are_compiled_for_a_folder_that_cannot_be_written_to(built: Built) -> None:
    if not built.facts["compiled"]:
        pytest.skip("no Python of Lambda's version to compile with")
    sources = {path.stem for path in (built.folder / "drone" / "serving").glob("*.py")}
    compiled = list((built.folder / "drone" / "serving" / "__pycache__").glob("*.pyc"))
    assert {path.name.split(".")[0] for path in compiled} == sources
    for path in compiled:
        code = path.read_bytes()
        assert int.from_bytes(code[4:8], "little") == 1  # By hash, and that unchecked.
        assert b"/var/task/drone/serving" in code and str(built.folder).encode() not in code


def test_the_same_content_is_the_same_zip(built: Built, tmp_path: Path) -> None:
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
    found = packaged.predict_pixels(pixels)
    np.testing.assert_allclose(found, plain.predict_pixels(pixels), atol=1e-5)


def test_a_registered_model_is_packaged_under_its_name_and_version(
    built: Built,
    exported: Path,
    version: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_experiment("packages")  # Not one that another test was in.
    for _ in range(2):
        with mlflow.start_run():
            mlflow.onnx.log_model(
                onnx.load(exported), name="model", pip_requirements=[], registered_model_name="fly"
            )
    mlflow.MlflowClient().set_registered_model_alias("fly", "champion", "2")

    def install(folder: Path, _: object) -> None:
        """The packages that pip has brought already."""
        shutil.copytree(built.folder, folder, dirs_exist_ok=True, ignore=kept)

    def kept(folder: str, _: list[str]) -> set[str]:
        return {"drone", "model.onnx"} if Path(folder) == built.folder else set()

    monkeypatch.setattr(packager, "install", install)
    words = ["--model", "models:/fly@champion", "--out", str(tmp_path / "out"), "--json"]
    monkeypatch.setattr(sys, "argv", ["package.py", *words, "--python", version])
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end:
            packager.cli.start(packager.Package, packager.main)
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)
        packager.cli.console.stderr = False
    assert end.value.code == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    with zipfile.ZipFile(facts["zip"]) as packed:
        packed.extract("model.onnx", tmp_path)
    packaged, plain = Predictor(tmp_path / "model.onnx"), Predictor(exported)
    assert packaged.metadata == {**plain.metadata, "name": "fly", "version": "2"}
    pixels = np.random.default_rng(6).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    np.testing.assert_allclose(
        packaged.predict_pixels(pixels), plain.predict_pixels(pixels), atol=1e-5
    )


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("ONNX=my model.onnx", ["--onnx", "my model.onnx"]),
        ("MODEL=models:/fly@champion", ["--model", "models:/fly@champion"]),
    ],
)
def test_make_hands_on_what_it_is_told(words: str, option: list[str]) -> None:
    command = ["make", "-n", "lambda", words, "ARCHITECTURE=arm64"]
    # `make test` runs this within another make, which would have this one name its folders.
    alone = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=True)
    last = shlex.split(done.stdout.splitlines()[-1])
    assert last[1:] == ["deploy/lambda/package.py", "--architecture", "arm64", *option]


def test_what_lambda_would_refuse_is_refused_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, archive = tmp_path / "package", tmp_path / "function.zip"
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "x").write_bytes(np.random.default_rng(0).bytes(2_000_000))
    with pytest.raises(packager.DroneError, match="holds torch"):
        packager.check(folder)
    (folder / "torch").rename(folder / "own")
    packager.check(folder)
    monkeypatch.setattr(packager, "MOST_ZIPPED_MB", 1)
    packager.write_zip(folder, archive)
    packager.report(folder, archive, {"imported": True, "compiled": True})
    assert "must go through S3" in capsys.readouterr().out
    monkeypatch.setattr(packager, "MOST_UNZIPPED_MB", 1)
    with pytest.raises(packager.DroneError, match="Lambda takes 1 at most"):
        packager.check(folder)
    with pytest.raises(packager.DroneError, match="does not start"):
        packager.try_import(tmp_path, sys.executable)


def test_a_build_that_fails_leaves_no_older_zip_to_deploy(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise packager.DroneError("pip cannot get the function's packages")

    monkeypatch.setattr(packager, "install", fail)
    (tmp_path / "function.zip").write_bytes(b"an older build")
    with pytest.raises(packager.DroneError, match="pip cannot"):
        packager.main(packager.Package(onnx=exported, out=tmp_path))
    assert not (tmp_path / "function.zip").exists()
    # A model that is none is found before anything is taken away.
    (tmp_path / "function.zip").write_bytes(b"an older build")
    (tmp_path / "no.onnx").write_bytes(b"no model")
    with pytest.raises(packager.DroneError, match="is not a model"):
        packager.main(packager.Package(onnx=tmp_path / "no.onnx", out=tmp_path))
    assert (tmp_path / "function.zip").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either --onnx FILE or --model URI"),
        (["--onnx", "none.onnx"], "There is no file none.onnx"),
    ],
)
def test_wrong_usage(words: list[str], message: str) -> None:
    command = [sys.executable, str(ROOT / "deploy" / "lambda" / "package.py"), *words]
    wide = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=wide)
    assert done.returncode == 2 and message in done.stderr


@pytest.fixture(scope="module")
def client(version: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with AWS's runtime client for that Python."""
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    wanted = next(line.split()[0] for line in lines if line.startswith("awslambdaric=="))
    target = tmp_path_factory.mktemp("client")
    command = [packager.interpreter(version), "-m", "pip", "install", "--quiet", wanted]
    command += ["--only-binary=:all:", "--target", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no {wanted} for Python {version}: {done.stderr.strip()[-200:]}")
    return target


@pytest.fixture
def host(unpacked: Path, client: Path, version: str) -> Iterator[Callable[..., LambdaHost]]:
    started: list[LambdaHost] = []

    def start(**environment: str) -> LambdaHost:
        python = packager.interpreter(version)
        started.append(LambdaHost(python, unpacked, client, **environment))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_it_runs_under_lambdas_own_runtime(
    host: Callable[..., LambdaHost], function: ModuleType, exported: Path
) -> None:
    running = host()
    expected = Predictor(exported, threads=1).predict(PICTURE)
    for sender in SENDERS:
        for way in WAYS.values():
            outcome = running.invoke(sender("POST", "/predict", *way))
            assert outcome.kind == "response", outcome
            said = content(outcome.content)
            assert said["label"] == expected.label
            assert said["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
    for name, (picture, status) in hostile.cases().items():
        outcome = running.invoke(http_api("POST", "/predict", "image/jpeg", picture))
        assert outcome.content["statusCode"] == status, name
    logged = running.close()
    assert "POST /predict 200" in logged
    assert "Traceback" not in logged


def test_it_starts_under_snapstart(host: Callable[..., LambdaHost]) -> None:
    running = host(AWS_LAMBDA_INITIALIZATION_TYPE="snap-start")
    outcome = running.invoke(function_url("POST", "/predict", "image/png", PICTURE))
    assert outcome.content["statusCode"] == 200


def test_a_function_without_its_model_says_so(
    host: Callable[..., LambdaHost], tmp_path: Path
) -> None:
    running = host(DRONE_MODEL=str(tmp_path / "none.onnx"))
    outcome = running.invoke(rest("GET", "/health"))
    assert outcome.kind == "error"
    assert "none.onnx is not a model that can be loaded" in outcome.content["errorMessage"]
