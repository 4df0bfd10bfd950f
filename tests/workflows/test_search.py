"""A study from first to last."""

from pathlib import Path
from typing import Any

import pytest

from drone.errors import Interrupted, ResumableError
from drone.search.study import Study
from drone.training.activation_cache.store import CacheSpec
from drone.workflows import search_final
from drone.workflows.display import SILENT
from drone.workflows.search_trials import SearchResources
from tests.search.studies import BASE, study_spec


@pytest.mark.parametrize("kind", [Interrupted, ResumableError])
def test_a_final_training_that_is_stopped_is_resumed_by_its_study(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_final(*_: Any) -> str:
        try:
            raise kind("Training was stopped.")
        except kind as error:
            raise kind(f"{error} Continue: python ray_jobs/train.py --resume x") from error

    monkeypatch.setattr(search_final, "_train_final", train_final)
    study = Study(tmp_path / "my study")
    resources = SearchResources(cache=CacheSpec())
    message = (
        rf"^Training was stopped\. Continue the study: "
        rf"python ray_jobs/tune\.py --resume '{study.folder}'$"
    )
    with pytest.raises(kind, match=message):
        search_final.finish(
            study, study_spec({}, 1), BASE, resources, search_final.AfterSearch(), "drone", SILENT
        )
