"""What the deployment installs, whom its machines trust, and what it makes of hostile names."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from mlflow.tracking import MlflowClient

from drone.serving.predictor import Predictor
from drone.tracking import model as tracked_model
from drone.tracking import runs
from tests.conftest import ROOT
from tests.jobs.processes import wait_for
from tests.serving import conftest as serving

pytestmark = pytest.mark.slow

linear = serving.linear
HOSTILE = ("$(touch {mark})", "`touch {mark}`", "x; touch {mark} #", "a' b\" $HOME", "x\ny")
PINNED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)")


def deploy(script: str, *args: object, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "deploy" / script), *map(str, args)],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_what_was_typed_is_one_word_of_the_nodes_shells(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    typed = name.format(mark=mark)
    (tmp_path / "key").touch()
    args = ["--head", typed, "--workers", "10.0.0.2", "--environment", f"/{typed}"]
    args += ["--key", tmp_path / "key", "--out", tmp_path / "local.yaml", "--user", "me"]
    done = deploy("local_cluster.py", *args, home=tmp_path)
    assert done.returncode == 0, done.stderr
    description = yaml.safe_load((tmp_path / "local.yaml").read_text())
    stub = 'bash() { for word in "${@:2}"; do printf "<%s>" "$word"; done; }; '
    for commands, wanted in (("head_start_ray_commands", typed), ("setup_commands", f"/{typed}")):
        (line,) = description[commands]
        printed = subprocess.run(
            ["bash", "-c", stub + line], capture_output=True, text=True, check=True
        ).stdout
        assert printed == f"<{wanted}>"
    assert not mark.exists()


@pytest.mark.parametrize("name", HOSTILE[:-1])
def test_what_was_typed_for_make_is_one_word_of_the_shell(name: str, tmp_path: Path) -> None:
    mark, printed = tmp_path / "mark", tmp_path / "printed"
    typed = name.format(mark=mark)
    # Instead of the environment: prints the arguments that arrive.
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {printed}\n')
    python.chmod(0o755)
    shutil.copy(python, python.with_name("ray"))
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements-dev.lock").touch()
    (tmp_path / ".venv" / ".ready").touch()
    # `make test` runs this test, and an inner make would take over its settings.
    alone = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    for target, variable in (
        ("demo", "DATA"),
        ("demo", "WEIGHTS"),
        ("lambda", "ONNX"),
        ("lambda", "MODEL"),
        ("lambda", "ARCHITECTURE"),
    ):
        command = ["make", "-s", target, f"{variable}={typed}"]
        done = subprocess.run(
            command, cwd=tmp_path, env=alone, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert typed in printed.read_text().splitlines()
        assert not mark.exists()


def test_credentials_are_not_written_into_the_clusters_description(tmp_path: Path) -> None:
    (tmp_path / "key").touch()
    args = ["--head", "10.0.0.1", "--key", tmp_path / "key", "--out", tmp_path / "local.yaml"]
    done = deploy("local_cluster.py", *args, "--storage", "s3://A:hunter2@b/x", home=tmp_path)
    assert done.returncode == 1 and "s3://***@b/x holds credentials" in done.stderr
    assert not (tmp_path / "local.yaml").exists()
    option = deploy("local_cluster.py", *args[2:], "--head=-oProxyCommand=x", home=tmp_path)
    assert option.returncode == 1 and "no user or address" in option.stderr


def start_head(home: Path, **provider: object) -> dict[str, str]:
    """Runs head.sh with stubs for Ray and MLflow.

    Returns the variables that a shell on the head gets, and `tracking`: the server's arguments.
    """
    programs = home / "env" / "bin"
    programs.mkdir(parents=True)
    for name in ("ip", "ray"):
        (programs / name).write_text("#!/bin/bash\n")
    (programs / "python").write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    (programs / "setsid").write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" > {home}/tracking\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    description = {"provider": provider, "auth": {"ssh_user": "me"}}
    (home / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(description))
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "DRONE_ENV": str(home / "env")}
    node = ROOT / "deploy" / "node"
    script = f"bash {node}/head.sh 10.0.0.5 && . {node}/env.sh && env -0"
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    wait_for(lambda: (home / "tracking").exists() and (home / "tracking").stat().st_size, 10)
    variables = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if "=" in entry)
    return {**variables, "tracking": (home / "tracking").read_text().replace("\0", "|")}


@pytest.mark.parametrize("name", HOSTILE)
def test_settings_of_the_cluster_stay_values_on_the_head(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    typed = name.format(mark=mark)
    head = start_head(tmp_path, storage=typed, region="eu", ssh_proxy_command="ssh -W x")
    assert head["DRONE_STORAGE"] == typed and f"|--backup|{typed}/mlflow|" in head["tracking"]
    assert head["AWS_DEFAULT_REGION"] == "eu" and not mark.exists()
    # The head checks the workers' host keys.
    description = yaml.safe_load((tmp_path / "ray_bootstrap_config.yaml").read_text())
    assert description["auth"]["ssh_proxy_command"] == "ssh -W x"


def test_the_head_shares_mlflow_only_if_it_is_told_to_and_with_a_password(tmp_path: Path) -> None:
    alone = start_head(tmp_path / "alone", storage="", share_tracking=False)
    assert alone["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"
    assert "|--host|127.0.0.1|" in alone["tracking"]
    assert "MLFLOW_TRACKING_PASSWORD" not in alone
    shared = start_head(tmp_path / "shared", storage="", share_tracking=True)
    assert shared["MLFLOW_TRACKING_URI"] == "http://10.0.0.5:5000"
    assert "|--host|10.0.0.5|" in shared["tracking"]
    # The file that the server reads, which only its owner can.
    file = tmp_path / "shared" / ".drone" / "mlflow" / "password"
    assert f"|--folder|{file.parent}|" in shared["tracking"]
    assert shared["MLFLOW_TRACKING_PASSWORD"] == file.read_text()
    assert shared["MLFLOW_TRACKING_USERNAME"] == "admin"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text() not in (tmp_path / "shared" / ".drone" / "node.env").read_text()


def test_mlflow_listens_on_the_heads_loopback_alone() -> None:
    assert (
        yaml.safe_load((ROOT / "cluster.yaml").read_text())["provider"]["share_tracking"] is False
    )
    worker = (ROOT / "deploy" / "node" / "worker.sh").read_text()
    assert "MLFLOW" not in worker and "5000" not in worker
    # No module that runs on workers imports MLflow.
    code = "import sys, drone.cluster.node_report, drone.cluster.worker, drone.cluster.trial; "
    code += "print('mlflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("image", ["YOUR-IMAGE", "resolve:ssm:/aws/x/latest/ami-id"])
def test_a_cluster_on_aws_starts_with_a_bucket_and_an_image_that_were_chosen(
    image: str, tmp_path: Path
) -> None:
    text = (ROOT / "cluster.yaml").read_text().replace("YOUR-IMAGE", image)
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    refused = deploy("aws_cluster.py", file, home=tmp_path)
    assert refused.returncode == 1
    assert f"ImageId of gpu-spot is {image}" in refused.stderr and "YOUR-BUCKET" in refused.stderr
    assert not (tmp_path / ".ray").exists()
    file.write_text("max_workers: 8")
    assert "it describes no cluster" in deploy("aws_cluster.py", file, home=tmp_path).stderr
    missing = deploy("aws_cluster.py", tmp_path / "none.yaml", home=tmp_path).stderr
    assert "none.yaml: it cannot be read: No such file or directory" in missing
    text = text.replace(image, "ami-0123456789abcdef0").replace("YOUR-BUCKET", "bucket")
    file.write_text(text)
    accepted = deploy("aws_cluster.py", file, home=tmp_path)
    assert accepted.returncode == 0, accepted.stderr
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_a_node_runs_no_download_whose_digest_differs(tmp_path: Path) -> None:
    programs, home = tmp_path / "bin", tmp_path / "home"
    programs.mkdir()
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("token")
    # Downloads something else.
    curl = programs / "curl"
    curl.write_text('#!/bin/bash\necho other > "$3"\n')
    curl.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "deploy" / "node" / "setup.sh")],
        env={"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "damaged or was replaced" in done.stderr
    assert not list((home / ".drone").iterdir())
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_nothing_downloaded_is_run_unchecked() -> None:
    files = [ROOT / "Makefile", ROOT / ".ci" / "run", *(ROOT / "deploy").rglob("*.sh")]
    files += (ROOT / "deploy").rglob("Dockerfile")
    for file in files:
        text = file.read_text()
        assert not re.search(r"(curl|wget)[^\n]*\|", text), file
        for line in re.findall(r"pip install.*", text.replace("\\\n", " ")):
            assert "--require-hashes" in line, f"{file}: {line}"


def entries(file: Path) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of each package of a lock."""
    text = file.read_text().replace("\\\n", " ")
    lines = [
        line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")
    ]
    found = {}
    for line in lines:
        match = PINNED.match(line)
        assert match, f"{file.name}: {line[:80]}"
        name = re.sub(r"[-_.]+", "-", match[1]).lower()
        found[name] = (match[2], re.findall(r"--hash=sha256:([0-9a-f]{64})", line))
    return found


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_the_lock_has_every_requirement_with_its_hashes(name: str) -> None:
    locked = entries(ROOT / f"{name}.lock")
    assert len(locked) > 100
    assert all(hashes for _, hashes in locked.values())
    for line in (ROOT / f"{name}.txt").read_text().splitlines():
        if match := PINNED.match(line):
            direct = re.sub(r"[-_.]+", "-", match[1]).lower()
            assert locked[direct][0] == match[2], f"{direct}: run make lock"
    # No machine's own mirror.
    assert not re.search(r"https?:|file:|index-url|find-links", (ROOT / f"{name}.lock").read_text())


@pytest.fixture
def logged(linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Id of a run that logged a model."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    runs.connect()
    with runs.start_run("run", lambda _: None) as run:
        tracked_model.log_model(linear, Predictor(linear).info.classes, {})
    return run.run_id


def test_a_logged_model_holds_no_code(logged: str, linear: Path, tmp_path: Path) -> None:
    import mlflow

    uri = tracked_model.logged_model(logged).model_uri
    folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / "model")))
    files = {file.name for file in folder.rglob("*") if file.is_file()}
    assert linear.name in files
    assert not [name for name in files if name.endswith((".py", ".pkl", ".pickle", ".pyc"))]
    flavor = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["python_function"]
    assert flavor["loader_module"] == "drone.tracking.pyfunc" and not flavor["code"]
    image = tracked_model._example_image()
    answer = mlflow.pyfunc.load_model(uri).predict(pd.DataFrame({"image": [image, image]}))
    assert len(answer) == 2 and answer["label"][0] in Predictor(linear).info.classes


def test_one_bad_image_of_a_batch_fails_alone(logged: str, linear: Path) -> None:
    import mlflow
    from mlflow.pyfunc.scoring_server import predictions_to_json

    model = mlflow.pyfunc.load_model(tracked_model.logged_model(logged).model_uri)
    good = tracked_model._example_image()
    wrapped = "\n".join(good[at : at + 76] for at in range(0, len(good), 76))
    safe = good.replace("+", "-").replace("/", "_").rstrip("=")
    bad = base64.b64encode(b"no image").decode()
    images = [good, bad, wrapped, "%%%", f"data:image/png;base64,{good}", safe, ""]
    answers = model.predict(pd.DataFrame({"image": images}))
    failed = [number for number, error in enumerate(answers["error"]) if error]
    assert failed == [1, 3, 6]
    assert "Not an image" in answers["error"][1] and "base64" in answers["error"][3]
    labels = answers["label"].tolist()
    assert {labels[number] for number in (0, 2, 4, 5)} == {labels[0]}
    assert [labels[number] for number in failed] == [None] * 3
    # What MLflow's server sends is JSON without NaN.
    text = io.StringIO()
    predictions_to_json(answers, text)
    sent = json.loads(text.getvalue(), parse_constant=lambda name: pytest.fail(name))
    rows = sent["predictions"]
    assert rows[1]["index"] is None and rows[0]["index"] == int(answers["index"][0])
    only_good = model.predict(pd.DataFrame({"image": [good, good]}))
    assert only_good["error"].tolist() == ["", ""] and only_good["index"].dtype.kind == "i"


def test_code_in_a_models_artifacts_is_never_run(logged: str, linear: Path, tmp_path: Path) -> None:
    """Whoever reaches the store can add files to a model; the project reads its ONNX file alone."""
    (model,) = MlflowClient().search_logged_models(
        [MlflowClient().get_run(logged).info.experiment_id]
    )
    folder, mark = Path(model.artifact_location.removeprefix("file://")), tmp_path / "mark"
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    (folder / "code").mkdir()
    (folder / "code" / "evil.py").write_text(code)
    (folder / "python_model.pkl").write_text(code)
    description = yaml.safe_load((folder / "MLmodel").read_text())
    description["flavors"]["python_function"] |= {"loader_module": "evil", "code": "code"}
    (folder / "MLmodel").write_text(yaml.safe_dump(description))
    model_ref = tracked_model.resolve_model(None, logged)
    file = tracked_model.fetch_onnx(model_ref, tmp_path / "fetched")
    assert file.read_bytes() == linear.read_bytes() and not mark.exists()
    assert Predictor(file).info.classes and not mark.exists()
