"""Files given as settings that are damaged, huge or something else: one clear line, exit code 2."""

import contextlib
import json
import os
import sqlite3
import tempfile
from collections import OrderedDict
from pathlib import Path

import mlflow
import pytest
import torch
from torchvision.models import mobilenet_v2

from drone.cluster import connection
from drone.config import coerce
from drone.data.dataset import Dataset
from drone.errors import ConfigError, RunError, TrackingError, WeightsError
from drone.model import mobilenet, weights
from drone.model.config import ModelConfig
from drone.search.grammar import parse_changes
from drone.search.space import DEFAULT, resolve_space
from drone.serving.predictor import Predictor
from drone.settings_file import read_yaml
from drone.tracking import artifacts, sqlite_store
from drone.training.config import TrainConfig
from drone.workflows.run_spec import read_spec
from tests.conftest import RunJob
from tests.faults.tracked_model import TrackedModel, call, stored, tracked, write_linear_of
from tests.jobs.test_command_line import fails

__all__ = ["call", "stored", "tracked"]

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]\n" for number in range(1, 12)
)

BAD_YAML = {
    "empty": (b"", "does not hold settings by name"),
    "null": (b"null", "does not hold settings by name"),
    "list": (b"- epochs: 1", "does not hold settings by name"),
    "deep": (b"[" * 1500 + b"]" * 1500, "nested too deeply"),
    "laughs": (LAUGHS.encode(), r"references \(\*name\) are not supported"),
    "binary": (bytes(range(256)), "Cannot read"),
    "surrogate": (b'preset: "\\ud800"', "control character"),
    "newline": (b'preset: "a\\nb"', "control character"),
    "twice": (b"epochs: 1\nseed: 2\nepochs: 3\n", "epochs is set twice below line 1"),
    "tabs": (b"model:\n\tdropout: 0.1\n", "Cannot read"),
    "huge": (b"#" * (2**20 + 1), "more than 1 MiB"),
    "date": (b"epochs: 2026-99-99", "line 1 has '2026-99-99', which is not a valid timestamp"),
    "digits": (b"epochs: " + b"9" * 5000, "line 1 has '999.*, which is not a valid int"),
    "no bool": (b"a: 1\nepochs: !!bool maybe", "line 2 has 'maybe', which is not a valid bool"),
    "no int": (b"epochs: !!int ''", "line 1 has '', which is not a valid int"),
    "no time": (b"epochs: !!timestamp x", "line 1 has 'x', which is not a valid timestamp"),
    "no map": (b"model: !!map [1]", "expected a mapping node"),
    "python": (b"!!python/object/apply:os.getcwd []", "Cannot read"),
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_a_settings_file_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    content, message = BAD_YAML[name]
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as raised:
        read_yaml(file)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 700


def test_a_settings_file_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(ConfigError, match="it is not a file"):
            read_yaml(tmp_path / name)
    with pytest.raises(ConfigError, match="Cannot read .*: File name too long"):
        read_yaml(tmp_path / ("n" * 300))


@pytest.mark.parametrize("flag", ["--config", "--space", "--first"])
def test_the_jobs_refuse_them(
    call_job: RunJob, dataset: Dataset, tmp_path: Path, flag: str
) -> None:
    (tmp_path / "laughs.yaml").write_text(LAUGHS)
    done = call_job("tune", "--data", dataset.folder, flag, "laughs.yaml")
    fails(done, 2, "Cannot read laughs.yaml: references (*name) are not supported")


def test_numbers_of_any_size() -> None:
    with pytest.raises(ConfigError, match="it must be a finite number"):
        coerce(TrainConfig, "optim.lr_head", 10**400, "test")
    digits = "1" + "0" * 400
    with pytest.raises(ConfigError, match="a range has low"):
        resolve_space(TrainConfig(), parse_changes([f"batch_size=1..{digits}"], DEFAULT), "test")
    for change in ({"low": 1, "high": 10**400}, {"low": 0.1, "high": 0.2, "log": "perhaps"}):
        with pytest.raises(ConfigError, match=r"a range has low|must be true or false"):
            resolve_space(TrainConfig(), {"model.dropout": change}, "test")


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(mobilenet_v2().state_dict())


FIRST = "features.0.0.weight"


def with_first(value: object):  # type: ignore[no-untyped-def]
    return lambda state: {**state, FIRST: value}


BAD_WEIGHTS = {
    "text": (lambda state: "weights", "holds a str, not a state dict"),
    "int keys": (lambda state: dict(enumerate(state.values())), r"names \(0, 1, 2, ...\) are unex"),
    "an int key": (lambda state: {**state, 3: torch.ones(1)}, "3 is no name of a layer"),
    "wrong keys": (lambda state: {f"net.{k}": v for k, v in state.items()}, r"\(net.features"),
    "nan": (lambda state: with_first(state[FIRST] * torch.nan)(state), "not finite"),
    "integers": (lambda state: with_first(state[FIRST].int())(state), "torch.int32 instead of"),
    "complex": (lambda state: with_first(state[FIRST].cfloat())(state), "complex64 instead of"),
    "sparse": (lambda state: with_first(state[FIRST].to_sparse())(state), "no array of numbers"),
    "meta": (lambda state: with_first(state[FIRST].to("meta"))(state), "no array of numbers"),
    "a list": (with_first([1.0]), "no array of numbers"),
    "ordered": (lambda state: OrderedDict(), "and 0 names are unexpected"),
    "a whole model": (lambda state: mobilenet_v2(), "holds more than tensors"),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_weights_that_are_no_state_dict(tmp_path: Path, state: dict, name: str) -> None:
    change, message = BAD_WEIGHTS[name]
    torch.save(change(state), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message) as raised:
        weights.load(str(tmp_path / "w.pth"))
    assert "weights_only" not in str(raised.value) and "\n" not in str(raised.value)


def test_weights_of_another_network_or_half_precision(tmp_path: Path, state: dict) -> None:
    torch.save({**state, FIRST: state[FIRST][:16]}, tmp_path / "narrow.pth")
    with pytest.raises(WeightsError, match=r"has the shape \(16, .* instead of \(32, "):
        weights.load(str(tmp_path / "narrow.pth"))
    torch.save({name: value.half() for name, value in state.items()}, tmp_path / "half.pth")
    built = mobilenet.build(ModelConfig(), 4, 0, weights.load(str(tmp_path / "half.pth")).state())
    assert built.features[0][0].weight.dtype == torch.float32


def test_weights_that_are_no_file(tmp_path: Path, state: dict) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty.pth").touch()
    torch.save(state, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.pth").write_bytes(bytes(range(256)) * 9)
    torch.save(state, tmp_path / "none")
    cases = {
        "": "--weights is empty",
        "pipe": "are not a file",
        ".": "are not a file",
        "empty.pth": "are an empty file",
        "cut.pth": "it is damaged",
        "noise.pth": "it is damaged",
        "n" * 300: "File name too long",
        "none": "is named like a kind of weights",
    }
    for name, message in cases.items():
        with pytest.raises(WeightsError, match=message):
            weights.load(str(tmp_path / name) if name else "")


def test_a_job_never_repeats_the_advice_to_load_unsafely(
    call_job: RunJob, dataset: Dataset, tmp_path: Path
) -> None:
    torch.save(mobilenet_v2(), tmp_path / "model.pth")
    args = ["smoke", "--data", dataset.folder, "--weights"]
    done = call_job("train", *args, "model.pth")
    fails(done, 1, "model.pth cannot be loaded as a file of weights")
    assert "weights_only" not in done.err + done.out
    fails(call_job("train", *args, ""), 1, "--weights is empty")


def make_store(file: Path) -> None:
    """A complete store, made by MLflow."""
    mlflow.MlflowClient(f"sqlite:///{file}").create_experiment("drone")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    make_store(file)
    return file.read_bytes()


def execute(file: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def test_a_store_that_mlflow_cannot_use(tmp_path: Path, store: bytes) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(store)
    sqlite_store.check(file)  # It is complete.
    cases = [
        (store[: len(store) // 2], [], "cut short"),
        (store[:50], [], "cut short"),
        (b"This is no database. " * 100, [], "no sqlite database"),
        (store, ["DROP TABLE runs"], "the table runs is missing"),
        (store, ["DROP TABLE alembic_version"], "another program, or tables are missing"),
        (b"", ["CREATE TABLE cars (name TEXT)"], "another program, or tables are missing"),
        (store, ["UPDATE alembic_version SET version_num = 'ffffffffffff'"], "another version"),
        (store[:4096] + bytes(len(store) - 4096), [], "is damaged"),
    ]
    for content, statements, message in cases:
        file.write_bytes(content)
        execute(file, *statements) if statements else None
        with pytest.raises(TrackingError, match=message) as raised:
            sqlite_store.check(file)
        assert str(file) in str(raised.value) and "\n" not in str(raised.value)


def test_places_where_there_can_be_no_store(tmp_path: Path) -> None:
    sqlite_store.check(tmp_path / "new" / "mlflow.db")
    (tmp_path / "file").touch()
    sqlite_store.check(tmp_path / "file")  # sqlite creates an empty file first.
    for path, message in (
        (tmp_path, "is not a file"),
        (tmp_path / "file" / "x.db", "cannot be created: File exists|Not a directory"),
    ):
        with pytest.raises(TrackingError, match=message):
            sqlite_store.check_writable(path)
            sqlite_store.check(path)


def test_a_read_only_store(store: bytes) -> None:
    # Not in tmp_path, which other users cannot enter.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        file = Path(folder) / "mlflow.db"
        file.write_bytes(store)
        file.chmod(0o444)
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                if os.geteuid() == 0:  # Root may write everything, so another user has to look.
                    os.setuid(65534)
                try:
                    sqlite_store.check_writable(file)
                except TrackingError as error:
                    code = 0 if f"{file} is read-only" in str(error) else 2
            os._exit(code)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("job", [["evaluate", "--run", "x"], ["promote", "--why", "1"]])
def test_a_job_with_a_damaged_store(call_job: RunJob, tmp_path: Path, job: list[str]) -> None:
    (tmp_path / "mlflow.db").write_text("This is no database. " * 100)
    done = call_job(*job)
    fails(done, 1, "The tracking store", "mlflow.db is no sqlite database, or was cut short")
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    "uri",
    [
        *("nonsense://host", "http://", "http://[::1", "http://127.0.0.1:99999", "http://a b"),
        *("postgresql://nobody@127.0.0.1/x", "mysql+nonsense://x", "databricks", "./mlruns"),
        *("sqlite:////proc/no/such/mlflow.db", "\udcff://", "uc:x", "file:///\x1b[2J"),
    ],
)
def test_a_tracking_uri_that_is_nonsense(call_job: RunJob, uri: str) -> None:
    done = call_job("evaluate", "--run", "x", MLFLOW_TRACKING_URI=uri)
    fails(done, 1, "racking")
    assert len(done.err.splitlines()) == 1, done.err
    assert "\x1b" not in done.err


def test_damaged_artifacts_of_a_run(tracked: TrackedModel, dataset: Dataset) -> None:
    run_id = tracked.run_id
    for content in (b"{", b"[]", b"\xff\xfe", b"[" * 100_000):
        (tracked.artifacts / "launch.json").write_bytes(content)
        with pytest.raises(RunError, match="launch.json of run .* is damaged"):
            read_spec(run_id)
    for spec in ({}, {"config": 3}, {"config": {"epochs": -1}}, {"config": {}, "data": "x"}):
        (tracked.artifacts / "launch.json").write_text(json.dumps(spec))
        with pytest.raises(RunError, match="launch.json of run .* is damaged"):
            read_spec(run_id)
    (tracked.artifacts / "launch.json").unlink()
    with pytest.raises(RunError, match="stopped before training started"):
        read_spec(run_id)
    (tracked.artifacts / "images.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(RunError, match="images.parquet of run .* is damaged"):
        artifacts.images_of(run_id)


def test_damaged_results_and_decisions(tracked: TrackedModel, call: RunJob) -> None:
    for name, message in (("metrics.json", "is damaged"), ("predictions.csv", "is damaged")):
        file = tracked.artifacts / "evaluation" / "test" / name
        whole = file.read_bytes()
        for content in (b"", b"{}", b"\x00\xff", b'{"macro_f1": null, "by_class": []}'):
            file.write_bytes(content)
            fails(call("promote", "--run", "linear", "--name", "other"), 1, name, message)
        file.write_bytes(whole)
    shown = call("promote", "--why", "1")
    assert shown.code == 0 and "pass" in shown.out
    file = next(tracked.artifacts.glob("promotion/*.json"))
    for content in ("{", "[]", "{}", '{"rules": 3, "passed": 1, "candidate": "x", "when": "y"}'):
        file.write_text(content)
        fails(call("promote", "--why", "1"), 1, "damaged")
    file.unlink()
    fails(call("promote", "--why", "1"), 1, "The gate was never applied to version 1")
    fails(call("promote", "--why", "x"), 1, "There is no version x of drone-classifier")


def test_models_that_are_not_ours(tmp_path: Path, dataset: Dataset, call_job: RunJob) -> None:
    file = tmp_path / "model.onnx"
    write_linear_of(file, dataset)
    whole = file.read_bytes()
    cases: list[tuple[bytes | dict[str, object], str]] = [
        (b"", "not a model that can be loaded"),
        (whole[: len(whole) // 2], "not a model that can be loaded"),
        (b"text", "not a model that can be loaded"),
        ({"num_outputs": 3}, "returns 3 probabilities, but its metadata names 4 classes"),
        ({"classes": "["}, "metadata of .* is damaged"),
        ({"classes": "3"}, "metadata of .* is damaged"),
        ({"preprocessing": "{}x"}, "metadata of .* is damaged"),
        ({"preprocessing": '{"size": 3}'}, "metadata of .* is damaged"),
        ({"temperature": "warm"}, "metadata of .* is damaged"),
    ]
    for case, message in cases:
        if isinstance(case, bytes):
            file.write_bytes(case)
        else:
            write_linear_of(file, dataset, **case)  # type: ignore[arg-type]
        with pytest.raises(RunError, match=message) as raised:
            Predictor(file).start()
        assert "\n" not in str(raised.value)
        done = call_job("serve", "--onnx", file, "--port", 0)
        assert done.code == 1 and len(done.err.splitlines()) == 1, done.err


def test_a_model_that_is_missing_in_the_store(tracked: TrackedModel, call: RunJob) -> None:
    tracked.onnx.unlink()
    for job in (["evaluate", "--run", "linear"], ["serve", "--run", "linear", "--port", "0"]):
        fails(call(*job), 1, "Run linear: its model holds no ONNX file")


@pytest.mark.parametrize("address", ["nonsense", "http://x y"])
def test_an_address_of_no_cluster(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("PYTHONPATH", "")
    message = f"no Ray cluster at RAY_ADDRESS={address} "
    with pytest.raises(RunError, match=message) as raised, connection.connected():
        pass
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("host", ["\udce9", "a\nb", "n" * 300, "no such host"])
def test_a_host_that_is_no_address(call: RunJob, tracked: TrackedModel, host: str) -> None:
    for done in (
        call("serve", "--onnx", tracked.onnx, f"--host={host}", "--open-to-all"),
        call("tracking", f"--host={host}"),
    ):
        fails(done, 2, "Cannot listen on ")
        assert len(done.err.splitlines()) == 1


def test_the_home_of_nobody(call_job: RunJob) -> None:
    for args in (
        ["train", "smoke", "--data", "x", "--storage", "~no-such-user/x"],
        ["train", "smoke", "--data", "x", "--activation-cache", "~no-such-user/x"],
        ["tune", "--data", "x", "--storage", "~no-such-user/x"],
        ["tracking", "--host", "203.0.113.1", "--backup", "~no-such-user/x"],
        ["tracking", "--host", "203.0.113.1", "--folder", "~no-such-user/x"],
    ):
        fails(call_job(*args), 2, "~no-such-user/x cannot be found")
