"""A trial that cannot train; without a running Ray."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drone.cluster import trial as trial_module
from tests.search.studies import BASE


def test_a_trial_without_its_data_set_fails_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(trial_module.tune, "report", reports.append)
    spec = SimpleNamespace(base=BASE, data=str(tmp_path / "gone"), fingerprint="", storage="runs")
    trial = {"part": "trials", "number": 0, "params": {}, "seed": 0, "num_folds": 1}
    trial |= {"until_fold": 1, "reported": 0, "wall_s": 0.0}
    trial_module.run_trial(trial, spec)  # type: ignore[arg-type]
    (update,) = (json.loads(report[trial_module.UPDATE]) for report in reports)
    assert update["state"] == "failed" and "gone" in update["reason"]
