"""A trial that cannot train; without a running Ray."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drone.cluster import trial as trial_module
from drone.errors import DataError
from drone.storage import head_files
from tests.search.studies import BASE


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What trials report to Ray Tune."""
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(trial_module.tune, "report", reports.append)
    return reports


def run_trial(data: str) -> None:
    spec = SimpleNamespace(base=BASE, data=data, fingerprint="f", storage="runs")
    trial = {"part": "trials", "number": 0, "params": {}, "seed": 0, "num_folds": 1}
    trial |= {"until_fold": 1, "reported": 0, "wall_s": 0.0}
    trial_module.run_trial(trial, spec)  # type: ignore[arg-type]


def test_a_trial_without_its_data_set_fails_with_the_reason(
    tmp_path: Path, reports: list[dict[str, Any]]
) -> None:
    run_trial(str(tmp_path / "gone"))
    (update,) = (json.loads(report[trial_module.UPDATE]) for report in reports)
    assert update["state"] == "failed" and "gone" in update["reason"]


def test_a_trial_whose_head_cannot_be_reached_is_left_to_ray_tune(
    reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_head(*call: object) -> None:
        raise ConnectionError("the machine that the job runs on cannot be reached")

    monkeypatch.setattr(head_files, "_transport", no_head)
    with pytest.raises(DataError, match="Cannot copy the data set .* cannot be reached"):
        run_trial("head:///set")
    assert reports == []
