"""Models in MLflow: ONNX with the preprocessing inside."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from PIL import Image

from drone.commands import command
from drone.errors import RunError
from drone.serving.checksum import check_sha256, file_sha256
from drone.tracking import pyfunc
from drone.tracking.failures import FAILURES, first_line
from drone.tracking.runs import Run, find_run

CHECKSUM_TAG = "onnx_sha256"
"""Tag of a logged model and of a registered version: SHA-256 of the ONNX file, hexadecimal."""

_MODEL_NAME = "model"
_REQUIREMENTS = ("mlflow", "onnxruntime", "pillow", "numpy", "pandas")


def log_model(onnx_file: Path, classes: Sequence[str], metadata: Mapping[str, str]) -> str:
    """Logs an exported model to the active run.

    Args:
        onnx_file: The exported model.
        classes: Names in the order of their indices.
        metadata: Metadata of the model, shown in the registry.

    Returns:
        Its URI.
    """
    outputs = [ColSpec(DataType.string, "label"), ColSpec(DataType.long, "index")]
    outputs += [ColSpec(DataType.double, name) for name in classes]
    outputs.append(ColSpec(DataType.double, pyfunc.KNOWN_COLUMN))
    outputs.append(ColSpec(DataType.string, pyfunc.ERROR_COLUMN))
    info = mlflow.pyfunc.log_model(
        name=_MODEL_NAME,
        # A module of the checkout: no code, and nothing pickled, comes from the artifacts, which
        # whoever reaches the store can replace.
        loader_module=pyfunc.__name__,
        data_path=str(onnx_file),
        signature=ModelSignature(
            inputs=Schema([ColSpec(DataType.string, "image")]), outputs=Schema(outputs)
        ),
        input_example=pd.DataFrame({"image": [_example_image()]}),
        # Named here: MLflow would spend 5 s to infer them.
        pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
        metadata=dict(metadata),
        # In the database of the store, away from the file that it is compared with.
        tags={CHECKSUM_TAG: file_sha256(onnx_file)},
    )
    return str(info.model_uri)


def log_model_metrics(metrics: Mapping[str, float]) -> None:
    """Logs metrics of the model to the active run."""
    mlflow.log_metrics(dict(metrics))


def _example_image() -> str:
    """Returns a small image as base64."""
    buffer = io.BytesIO()
    # Small: MLflow stores the example as JSON beside the model.
    ramp = np.linspace(90, 220, 32, dtype=np.uint8)[:, None, None]
    Image.fromarray(np.broadcast_to(ramp, (32, 32, 3)).copy()).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class ModelRef:
    """A model by the names that the user knows it by."""

    run_id: str
    name: str
    """Of the registered model, or of the run."""

    version: str = ""
    """Of the registered model; empty for a run's."""

    sha256: str = ""
    """Checksum of the ONNX file when the version was registered; empty for a run's model."""

    def __str__(self) -> str:
        return f"Version {self.version} of {self.name}" if self.version else f"Run {self.name}"


def resolve_model(uri: str | None, run: str | None) -> ModelRef:
    """Returns the model that a URI or a run names.

    Args:
        uri: URI such as models:/drone-classifier@champion or models:/drone-classifier/3.
        run: Id or name of a run, used if there is no URI.

    Raises:
        RunError: There is no such model or run.
    """
    if uri is not None:
        return _registered(uri)
    info = find_run(str(run)).info
    return ModelRef(info.run_id, str(info.run_name))


def _registered(uri: str) -> ModelRef:
    if not uri.startswith("models:/"):
        raise RunError(f"{uri!r} names no model; use models:/NAME@ALIAS or models:/NAME/VERSION.")
    name, _, alias = uri.removeprefix("models:/").partition("@")
    client = mlflow.MlflowClient()
    try:
        if alias:
            entry = client.get_model_version_by_alias(name, alias)
        else:
            name, _, number = name.partition("/")
            entry = client.get_model_version(name, number)
    except FAILURES as error:
        raise RunError(f"There is no model {uri}: {describe_registered(name)}") from error
    model = model_ref(entry)
    run_of(model)
    return model


def run_of(model: ModelRef) -> Run:
    """Returns the run that a model comes from.

    Raises:
        RunError: It was deleted; names the model.
    """
    try:
        return find_run(model.run_id)
    except RunError as error:
        raise RunError(f"{model} comes from a run that cannot be used. {error}") from error


def describe_registered(name: str) -> str:
    """Returns what the registry has: the versions and aliases of a model, or the models."""
    client = mlflow.MlflowClient()
    try:
        models = {model.name: model for model in client.search_registered_models()}
        if name not in models:
            promote = command("promote", run="RUN")
            return (
                f"the registered models are {', '.join(models)}."
                if models
                else f"no model is registered yet. Register a run's: {promote}"
            )
        # Asked for again: the versions of a search are the latest ones only.
        numbers = [int(entry.version) for entry in client.search_model_versions(name_filter(name))]
        aliases = client.get_registered_model(name).aliases
    except FAILURES as error:
        return f"the registry cannot be listed ({first_line(error)})."
    versions = ", ".join(map(str, sorted(numbers))) or "none"
    named = ", ".join(f"{alias} is {number}" for alias, number in aliases.items())
    return f"the versions of {name} are {versions}, its aliases {named or 'none'}."


def name_filter(name: str) -> str:
    """Returns the filter for the versions of a registered model.

    Raises:
        RunError: No model can have such a name.
    """
    quote = '"' if "'" in name else "'"
    if quote in name:
        raise RunError(f"{name} cannot be the name of a model: it contains quotes of both kinds.")
    return f"name = {quote}{name}{quote}"


def model_ref(entry: ModelVersion) -> ModelRef:
    """Returns the model that an entry of the registry stands for."""
    tag = entry.tags.get(CHECKSUM_TAG, "")
    return ModelRef(str(entry.run_id), str(entry.name), str(entry.version), tag)


def logged_model(run_id: str) -> LoggedModel:
    """Returns the model that a run logged last.

    Raises:
        RunError: The run logged no model, or it cannot be read.
    """
    run = find_run(run_id)
    outputs = [output.model_id for output in run.outputs.model_outputs] if run.outputs else []
    if not outputs:
        name = f"Run {run.info.run_name} ({run_id}, {run.info.status})"
        raise RunError(f"{name} has no model. {_how_to_get_a_model(run)}")
    try:
        # The last one: a run that was killed after logging its model logs it again when resumed.
        return mlflow.MlflowClient().get_logged_model(outputs[-1])
    except FAILURES as error:
        raise RunError(f"Cannot read the model of run {run_id}: {first_line(error)}.") from error


def _how_to_get_a_model(run: Run) -> str:
    tags, run_id = run.data.tags, run.info.run_id
    study = run.info.run_name if "num_trials" in run.data.params else tags.get("study")
    if study is not None:
        return (
            f"It belongs to the study {study}, which keeps the model of its final run alone, named "
            f"{study}-final-... If there is none yet: {command('tune', resume=study)}"
        )
    if "preset" not in tags:
        return "It was not started by python ray_jobs/train.py. Name a run that was."
    if run.info.status == "FINISHED":
        return "Train one: " + command("train", tags["preset"], data="DATASET")
    return f"Wait until it is finished or, if it was stopped, {command('train', resume=run_id)}"


def fetch_onnx(model: ModelRef, target: Path) -> Path:
    """Downloads an exported model and compares it with its checksum.

    Returns:
        The ONNX file.

    Raises:
        RunError: There is no such model, or the file is not the one that was logged.
    """
    logged = logged_model(model.run_id)
    try:
        folder = mlflow.artifacts.download_artifacts(
            artifact_uri=logged.model_uri, dst_path=str(target)
        )
    except FAILURES as error:
        raise RunError(
            f"{model}: its model cannot be read from the artifact store: {first_line(error)}."
        ) from error
    # The path below the folder of the model is for MLflow to choose.
    files = sorted(Path(folder).rglob("*.onnx"))
    if not files:
        place = unquote(str(logged.artifact_location).removeprefix("file://"))
        raise RunError(
            f"{model}: its model holds no ONNX file; it belongs below {place}. Restore the "
            f"artifacts from a copy, or train and promote a run again."
        )
    checksums = [tag for tag in (model.sha256, logged.tags.get(CHECKSUM_TAG)) if tag]
    if not checksums:
        raise RunError(
            f"{model}: its model has no checksum, so this program has not logged it. Train a run "
            f"and evaluate that."
        )
    for expected in checksums:
        check_sha256(
            files[0],
            expected,
            str(model),
            "Restore the artifact from a copy, or promote another run.",
        )
    return files[0]
