"""What the Dockerfile makes: built where Docker runs, and its steps in a clean environment.

The steps that need root on Debian are not run without Docker: apt-get, useradd and chown.
"""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.jobs.test_command_line import JOBS
from tests.serving.test_lambda_package import OFFLINE

APP = "/home/ray/app"
DOCKERFILE = ROOT / "deploy" / "kuberay" / "Dockerfile"
BUILDERS = ("apt-get", "useradd", "chown")
"""Commands of the steps that only Docker runs."""


@dataclass(frozen=True)
class Step:
    instruction: str
    text: str


def steps() -> list[Step]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [Step(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def of(instruction: str) -> list[str]:
    return [step.text for step in steps() if step.instruction == instruction]


def is_sent(name: str) -> bool:
    """Whether .dockerignore lets a file of the project into the build; the last rule wins."""
    sent = True
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        if rule and not rule.startswith("#") and fnmatch(name, rule.removeprefix("!")):
            sent = rule.startswith("!")
    return sent


def copy_into(root: Path) -> Path:
    """Runs the COPY steps below a folder, and returns where the code is."""
    app = root / APP.lstrip("/")
    app.mkdir(parents=True)
    for text in of("COPY"):
        *sources, target = [word for word in shlex.split(text) if not word.startswith("--")]
        for name in sources:
            assert is_sent(name), f".dockerignore keeps {name} from the build"
            if (ROOT / name).is_dir():
                # As Docker does: the content of a folder is copied, not the folder.
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, app / target, ignore=ignored)
            else:
                shutil.copy(ROOT / name, app / target)
    return app


def environment(app: Path, programs: Path) -> dict[str, str]:
    """The variables of the image, nothing of this process but where its programs are."""
    found = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(app.parent), "COLUMNS": "200"}
    for text in of("ENV"):
        for word in shlex.split(text):
            name, value = word.split("=", 1)
            found[name] = value.replace(APP, str(app))
    return found


def check_code(app: Path, python: Path, names: tuple[str, ...]) -> None:
    """Starts jobs as KubeRay does, and what builds the service as Ray Serve does."""
    variables = environment(app, python.parent)
    for name in names:
        done = subprocess.run(
            ["python", f"ray_jobs/{name}.py", "--help"],
            cwd=app,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 and "--json" in done.stdout, f"{name}: {done.stderr}"
    code = "from drone.workflows import serving as s; print(s.build_application and s.__file__)"
    elsewhere = subprocess.run(
        ["python", "-c", code], cwd="/", env=variables, capture_output=True, text=True, check=False
    )
    assert elsewhere.stdout.startswith(str(app)), elsewhere.stderr


def test_the_build_gets_the_code_and_nothing_else() -> None:
    sent = {path.name for path in ROOT.iterdir() if is_sent(path.name)}
    copied = {word for text in of("COPY") for word in shlex.split(text)[:-1]}
    assert sent == {name for name in copied if not name.startswith("--")}
    assert not is_sent("mlflow.db") and not is_sent(".git") and not is_sent("data")


def test_the_image_is_safe_to_run() -> None:
    assert of("USER")[-1] == "ray"
    (user,) = [text for text in of("RUN") if "useradd" in text]
    assert "--uid 1000" in user  # The user of the pods.
    (install,) = [text for text in of("RUN") if "pip install" in text]
    assert "--require-hashes -r requirements.lock" in install
    # KubeRay's probes call it.
    assert any(" wget" in text for text in of("RUN"))
    (base,) = of("FROM")
    assert base.startswith("python:3.11-")
    assert not re.search(r"(?i)password|token|secret", "".join(of("ENV")))


def test_the_code_of_the_image_starts(tmp_path: Path) -> None:
    check_code(copy_into(tmp_path), Path(sys.executable), ("train", "serve"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_steps_run_in_a_clean_environment(tmp_path: Path) -> None:
    app = copy_into(tmp_path / "root")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    programs = tmp_path / "venv" / "bin"
    try:
        for text in of("RUN"):
            if not any(builder in text for builder in BUILDERS):
                _run_step(text, app, programs)
        check_code(app, programs / "python", JOBS)
        version = subprocess.run([programs / "ray", "--version"], capture_output=True, text=True)
        pinned = re.search(r"^ray==(\S+)", (app / "requirements.lock").read_text(), re.MULTILINE)
        assert pinned and version.stdout.split()[-1] == pinned[1]
    finally:
        shutil.rmtree(tmp_path / "venv")  # Several gigabytes.


def _run_step(text: str, app: Path, programs: Path) -> None:
    command = ["bash", "-c", f'export PATH={shlex.quote(str(programs))}:"$PATH"; {text}']
    done = subprocess.run(command, cwd=app, capture_output=True, text=True, check=False)
    if done.returncode and OFFLINE.search(done.stderr):
        pytest.skip("needs a package index")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_docker_builds_it() -> None:
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "info"], capture_output=True).returncode:
        pytest.skip("needs a running Docker")
    tag = "drone-test"
    subprocess.run([docker, "build", "-f", DOCKERFILE, "-t", tag, ROOT], check=True)
    # By a login shell, as KubeRay starts Ray.
    script = "ray --version && wget --version && python ray_jobs/train.py --help && id -u"
    done = subprocess.run(
        [docker, "run", "--rm", tag, "bash", "-lc", script], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1000"
