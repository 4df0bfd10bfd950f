"""An evaluation with negatives that are in no data set."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drone.data.dataset import Dataset
from drone.errors import DataError
from drone.workflows.evaluation import evaluate
from drone.workflows.requests import EvaluateRequest
from tests.faults.tracked_model import TrackedModel, stored, tracked

__all__ = ["stored", "tracked"]  # Fixtures.

pytestmark = pytest.mark.slow


def test_negatives_of_a_folder(tracked: TrackedModel, dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "others"
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        file = folder / ("sky" if number < 3 else "wires") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    (folder / "sky" / "cut.png").write_bytes(b"no image")
    # An image that the model was trained on, by another name.
    row = dataset.rows("train").iloc[0]
    (folder / "sky" / "seen.png").write_bytes(Path(row["root"], row["path"]).read_bytes())
    request = EvaluateRequest(
        run=tracked.run_id, negatives=(str(folder),), out=tmp_path / "reports"
    )
    result = evaluate(request)
    # The linear model knows every image.
    kinds = {scores.kind: scores for scores in result.evaluated.known.kinds}
    assert {kind: scores.accepted.support for kind, scores in kinds.items()} == {
        "all": 5,
        "sky": 3,
        "wires": 2,
    }
    assert kinds["all"].auroc.value == 0.5 and kinds["all"].accepted.value == 1
    left_out = result.evaluated.left_out
    assert left_out[str(folder / "sky" / "seen.png")] == "It was trained on."
    assert str(folder / "sky" / "cut.png") in left_out
    assert result.evaluated.name == "test-negatives-others"
    metrics = json.loads((result.report.parent / "metrics.json").read_text())
    assert metrics["known"]["kinds"]["wires"]["accepted"]["value"] == 1
    at_90 = metrics["operating_point"]["at_recall"]["0.9"]
    assert at_90["false_alarms_per_1000_negatives"]["support"] == 5
    assert at_90["recall"]["value"] >= 0.9
    with pytest.raises(DataError, match="no image is new to the model"):
        for number in range(5):
            (folder / ("sky" if number < 3 else "wires") / f"{number}.png").unlink()
        evaluate(request)
