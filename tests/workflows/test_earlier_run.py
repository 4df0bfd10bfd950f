"""Starting weights from an earlier run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from drone.config import to_dict
from drone.data.dataset import Dataset
from drone.labels import CLASSES
from drone.model import mobilenet
from drone.presets import get_preset
from drone.tracking import runs
from drone.training import checkpoint
from drone.training.checkpoint import Identity, Position, Tensors
from drone.workflows.display import SILENT
from drone.workflows.earlier_run import starting_weights
from drone.workflows.run_spec import RunSpec


@pytest.mark.slow
def test_the_classes_of_a_run_may_have_names_of_any_kind(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow cuts a tag to 8,000 characters, and what looks like a password is masked in it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    before = [f"http://user:password@host {number:0>54}" for number in range(200)]
    assert {len(name) for name in before} == {80}
    before[10:10] = reversed(CLASSES)
    config = get_preset("smoke")
    model = mobilenet.build(config.model, len(before), 1, None).state_dict()
    identity = Identity(to_dict(config), tuple(before), dataset.fingerprint, "")
    checkpoint.save(
        tmp_path / "runs" / "checkpoint_1",
        Position(epoch=1),
        identity,
        Tensors({"model": model}, {}, model),
    )
    runs.connect()
    spec = RunSpec(config=config, data=str(dataset.folder), storage=str(tmp_path / "runs"))
    with runs.start_run("earlier", print) as run:
        run.log_tags({"classes": json.dumps(before)})
        run.log_dataset(dataset)
        run.log_text(spec.to_json(), "launch.json")
    state = starting_weights(replace(spec, from_run=run.run_id), dataset, SILENT).state()
    assert state is not None
    rows = [before.index(name) for name in CLASSES]
    last = [name for name in model if name.startswith("head.")][-1]
    torch.testing.assert_close(state[last], model[last][rows], rtol=0, atol=0)
