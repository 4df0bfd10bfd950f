"""Reads artifacts of runs; one that is damaged is an error that names it."""

import json
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import mlflow
import pandas as pd
from mlflow.tracking import MlflowClient

from drone.errors import RunError
from drone.tracking.failures import FAILURES, first_line

IMAGES_FILE = "images.parquet"
"""Artifact of a run: which image was in which split."""

IMAGE_COLUMNS = ["md5", "content", "phash", "class_name", "split", "group", "path"]
"""Columns of that file."""


class MissingArtifactError(RunError):
    """A run has no artifact of that name."""


def download(run_id: str, artifact: str, target: Path) -> Path:
    """Downloads a file or folder of a run's artifacts.

    Raises:
        MissingArtifactError: The run has no artifact of that name.
        RunError: The artifact cannot be read.
    """
    try:
        return Path(
            mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=artifact, dst_path=str(target)
            )
        )
    except FAILURES as error:
        reason = first_line(error)
        # Listed only now: the stores do not agree on the error for what is missing.
        if _has_artifact(run_id, artifact):
            raise RunError(f"Cannot read {artifact} of run {run_id}: {reason}.") from error
        folder = _missing_folder(run_id)
        if folder is not None:
            raise RunError(
                f"The artifacts of run {run_id} are missing: there is no folder {folder}. Copy it "
                f"there; the folder mlartifacts belongs beside the file of the tracking store."
            ) from error
        raise MissingArtifactError(f"Run {run_id} has no {artifact}: {reason}.") from error


def _missing_folder(run_id: str) -> Path | None:
    """Returns the folder of a run's artifacts if it is gone; None if it is there, or never was."""
    run = MlflowClient().get_run(run_id)
    uri = urlsplit(str(run.info.artifact_uri))
    folder = Path(unquote(uri.path))
    # Until its first epoch has ended a run may have no artifacts yet.
    was_there = uri.scheme == "file" and "train/loss" in run.data.metrics
    return folder if was_there and not folder.exists() else None


def _has_artifact(run_id: str, artifact: str) -> bool:
    folder = artifact.rpartition("/")[0] or None
    try:
        return artifact in {item.path for item in MlflowClient().list_artifacts(run_id, folder)}
    except FAILURES:
        # The store does not answer, which says nothing about the artifact.
        return True


def read_json(run_id: str, artifact: str) -> dict[str, Any]:
    """Reads a JSON artifact of a run.

    Raises:
        MissingArtifactError: The run has no artifact of that name.
        RunError: The artifact is damaged, or cannot be read.
    """
    try:
        with tempfile.TemporaryDirectory() as temporary:
            content = json.loads(download(run_id, artifact, Path(temporary)).read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(run_id, artifact, error) from error
    return content


def damaged(run_id: str, artifact: str, error: Exception) -> RunError:
    """Returns the error of an artifact that does not hold what was logged."""
    return RunError(
        f"{artifact} of run {run_id} is damaged ({type(error).__name__}: {first_line(error)}). "
        f"Restore the artifacts from a copy."
    )


def images_of(run_id: str) -> pd.DataFrame:
    """Returns the images of a run's data set, with the columns of `IMAGE_COLUMNS`.

    Raises:
        RunError: The run has no list of its images, or the list is damaged.
    """
    try:
        with tempfile.TemporaryDirectory() as temporary:
            images = pd.read_parquet(download(run_id, IMAGES_FILE, Path(temporary)))
        # All of them must be there, whichever the caller needs.
        return images[IMAGE_COLUMNS]
    except (OSError, ValueError, KeyError) as error:
        raise damaged(run_id, IMAGES_FILE, error) from error


def training_contents(run_id: str) -> "pd.Series[str]":
    """Returns the content of each image that a run was trained or selected on: all but test.

    Raises:
        RunError: The run has no list of its images.
    """
    images = images_of(run_id)
    return images.loc[images["split"] != "test", "content"]
