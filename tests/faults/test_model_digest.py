"""A model that is not the one that was evaluated is never loaded."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from drone.data.dataset import Dataset
from drone.errors import RunError
from drone.serving.checksum import check_exported, file_sha256
from drone.tracking import registry
from drone.tracking.model import CHECKSUM_TAG, fetch_onnx, resolve_model
from tests.conftest import ROOT, RunJob, restored_process
from tests.faults.tracked_model import TrackedModel, call, stored, tracked, write_linear_of
from tests.jobs.test_command_line import fails

__all__ = ["call", "stored", "tracked"]

Package = Callable[..., None]
CHAMPION = "models:/drone-classifier@champion"


def replace_model(tracked: TrackedModel, dataset: Dataset) -> str:
    """Replaces the stored model by another one that works; returns its checksum."""
    write_linear_of(tracked.onnx, dataset, temperature="2.0")
    return file_sha256(tracked.onnx)


def test_the_checksum_is_in_the_tags(tracked: TrackedModel, tmp_path: Path) -> None:
    entry = MlflowClient().get_model_version(registry.DEFAULT_NAME, "1")
    assert entry.tags[CHECKSUM_TAG] == file_sha256(tracked.onnx)
    for model in (resolve_model(CHAMPION, None), resolve_model(None, tracked.run_id)):
        fetched = fetch_onnx(model, tmp_path / model.name / model.version)
        assert file_sha256(fetched) == entry.tags[CHECKSUM_TAG]


@pytest.mark.parametrize(
    "job",
    [
        ["serve", "--model", CHAMPION, "--port", "0"],
        ["evaluate", "--model", CHAMPION],
        ["export", "--model", CHAMPION, "--out", "out", "--unchecked"],
        ["evaluate", "--run", "linear"],
        ["serve", "--run", "linear", "--port", "0"],
        ["export", "--run", "linear", "--out", "out", "--unchecked"],
    ],
)
def test_a_replaced_model_is_refused(
    tracked: TrackedModel, dataset: Dataset, call: RunJob, job: list[str]
) -> None:
    logged = file_sha256(tracked.onnx)
    replaced = replace_model(tracked, dataset)
    owner = "Version 1 of drone-classifier" if "--model" in job else "Run linear"
    done = call(*job)
    fails(done, 1, owner, logged[:12], replaced[:12], "damaged or replaced")
    assert not (tracked.folder / "out").exists()


def test_a_replaced_model_is_not_promoted(
    tracked: TrackedModel, dataset: Dataset, call: RunJob
) -> None:
    logged = file_sha256(tracked.onnx)
    replaced = replace_model(tracked, dataset)
    done = call("promote", "--run", "linear", "--name", "other")
    fails(done, 1, "Run linear", logged[:12], replaced[:12])
    assert registry.version_by_alias("other", registry.CHAMPION) is None


def test_a_version_keeps_the_checksum_of_its_registration(
    tracked: TrackedModel, tmp_path: Path
) -> None:
    client = MlflowClient()
    client.set_model_version_tag(registry.DEFAULT_NAME, "1", CHECKSUM_TAG, "0" * 64)
    with pytest.raises(RunError, match="Version 1 of drone-classifier has the checksum 0000"):
        fetch_onnx(resolve_model(CHAMPION, None), tmp_path / "fetched")
    client.delete_model_version_tag(registry.DEFAULT_NAME, "1", CHECKSUM_TAG)
    # Registered in another way: the model's own checksum is enough.
    fetched = fetch_onnx(resolve_model(CHAMPION, None), tmp_path / "again")
    client.set_model_version_tag(registry.DEFAULT_NAME, "1", CHECKSUM_TAG, file_sha256(fetched))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Package:
    """Builds the Lambda package, in this process."""

    def build(*args: object) -> None:
        monkeypatch.setattr(sys, "argv", ["package.py", *map(str, args)])
        with restored_process():
            runpy.run_path(str(ROOT / "deploy" / "lambda" / "package.py"), run_name="__main__")

    return build


def test_the_lambda_package_refuses_it_too(
    tracked: TrackedModel,
    dataset: Dataset,
    package: Package,
    capsys: pytest.CaptureFixture[str],
) -> None:
    replace_model(tracked, dataset)
    with pytest.raises(SystemExit) as ending:
        package("--model", CHAMPION, "--out", tracked.folder / "build")
    assert ending.value.code == 1
    assert "Version 1 of drone-classifier has the checksum" in capsys.readouterr().err
    assert not (tracked.folder / "build").exists()


def test_an_export_is_checked_against_its_description(
    tracked: TrackedModel, dataset: Dataset, call: RunJob, package: Package
) -> None:
    done = call("export", "--model", CHAMPION, "--out", "exported", "--unchecked", "--json")
    assert done.code == 0, done.err
    onnx = tracked.folder / "exported" / "model.onnx"
    info = onnx.with_name("model.json")
    assert json.loads(info.read_text())["sha256"] == {"model.onnx": file_sha256(onnx)}
    check_exported(onnx)
    described = info.read_text()
    exported, replaced = file_sha256(onnx), ""
    write_linear_of(onnx, dataset, temperature="3.0")
    replaced = file_sha256(onnx)
    done = call("serve", "--onnx", onnx, "--port", 0)
    fails(done, 1, "model.json has the checksum", exported[:12], replaced[:12], "export.py")
    with pytest.raises(SystemExit):
        package("--onnx", onnx, "--out", tracked.folder / "build")
    assert not (tracked.folder / "build").exists()
    for damaged in ("", "[]", "{}", '{"sha256": 3}', described[:40], "[" * 100_000):
        info.write_text(damaged)
        fails(call("serve", "--onnx", onnx, "--port", 0), 1, "model.json", "is damaged")
    # Without a description there is nothing to compare with.
    info.unlink()
    check_exported(onnx)
