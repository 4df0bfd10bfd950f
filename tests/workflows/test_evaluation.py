"""The card of conditions of an evaluation: the champion's scores stand beside the run's own."""

from pathlib import Path

import mlflow
import pytest

from drone.data.dataset import Dataset
from drone.tracking import registry
from drone.workflows.display import SilentDisplay
from drone.workflows.evaluation import evaluate
from drone.workflows.requests import EvaluateRequest
from tests.faults.tracked_model import TrackedModel, stored, track, tracked

__all__ = ["stored", "tracked"]  # Fixtures.

pytestmark = pytest.mark.slow


class Recorder(SilentDisplay):
    """Remembers the warnings."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, *lines: str) -> None:
        self.lines += lines


@pytest.fixture(scope="module")
def challenger(stored: TrackedModel, dataset: Dataset) -> str:
    """A second run in the store of the champion."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(stored.folder)
        return track(stored.folder, dataset, "challenger").run_id


def test_the_champion_stands_beside_another_run(
    tracked: TrackedModel, challenger: str, tmp_path: Path
) -> None:
    result = evaluate(EvaluateRequest(run=challenger, out=tmp_path))
    assert result.card is not None
    # Both are the same linear model.
    assert dict(result.card.beside) == {"the champion": result.card.rows}
    table = (result.report.parent / "conditions.csv").read_text()
    assert "accuracy of the champion" in table.splitlines()[0]


def test_the_champion_does_not_stand_beside_itself(tracked: TrackedModel, tmp_path: Path) -> None:
    result = evaluate(EvaluateRequest(run=tracked.run_id, out=tmp_path))
    assert result.card is not None and not result.card.beside


def test_a_champion_of_another_data_set_may_have_seen_the_images(
    tracked: TrackedModel,
    challenger: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    dataset: Dataset,
) -> None:
    client = mlflow.MlflowClient()
    client.set_tag(tracked.run_id, "fingerprint", "of another data set")
    request.addfinalizer(lambda: client.set_tag(tracked.run_id, "fingerprint", dataset.fingerprint))
    result = evaluate(EvaluateRequest(run=challenger, out=tmp_path))
    assert result.card is not None and not result.card.beside


def test_a_champion_whose_model_is_lost_is_left_out_with_a_warning(
    tracked: TrackedModel, challenger: str, tmp_path: Path
) -> None:
    tracked.onnx.unlink()
    display = Recorder()
    result = evaluate(EvaluateRequest(run=challenger, out=tmp_path), display)
    assert result.card is not None and not result.card.beside
    [warning] = display.lines
    assert warning.startswith(
        f"The conditions are shown without the champion of {registry.DEFAULT_NAME}. "
    )
