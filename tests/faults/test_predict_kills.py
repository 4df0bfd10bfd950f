"""However often predicting is killed, the same command ends with one row per image."""

import shutil
from pathlib import Path

import pytest
from pyarrow import csv, parquet

from drone.inference import parts
from drone.workflows.prediction import predict
from drone.workflows.requests import PredictRequest
from tests.faults.crash import killed_at_every_step
from tests.inference.conftest import onnx, write_image

pytestmark = pytest.mark.slow

__all__ = ["onnx"]


def test_killed_at_every_step(onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_MAX_ROWS", 2)
    images, out = tmp_path / "images", tmp_path / "out"
    for number in range(5):
        write_image(images / f"{number}.png", number)
    (images / "empty.png").touch()
    request = PredictRequest(onnx=onnx, images=(str(images),), out=out, sort="link")
    predict(request)
    expected = parquet.ParquetFile(out / "predictions.parquet").read()

    steps, resumed = 0, 0
    restore = lambda: shutil.rmtree(out, ignore_errors=True)  # noqa: E731
    for _ in killed_at_every_step(restore, lambda: predict(request)):
        result = predict(request)
        assert parquet.ParquetFile(out / "predictions.parquet").read() == expected
        assert csv.read_csv(out / "predictions.csv").num_rows == 6
        assert sum(file.is_file() for file in (out / "sorted").rglob("*")) == 5
        leftovers = [file.name for file in out.rglob(".*")]
        assert leftovers == []
        steps += 1
        resumed += 0 < result.num_new < 6
    assert steps > 20 and resumed > 4
