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

from drone.errors import RunError
from drone.serving.checksum import check_sha256, file_sha256
from drone.tracking import pyfunc
from drone.tracking.failures import FAILURES, first_line
from drone.tracking.runs import find_run

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
        raise RunError(
            f"There is no model {uri}. Registered models: {_registered_names()}."
        ) from error
    return model_ref(entry)


def _registered_names() -> str:
    try:
        models = mlflow.MlflowClient().search_registered_models()
    except FAILURES as error:
        return f"they cannot be listed ({first_line(error)})"
    return ", ".join(model.name for model in models) or "none yet"


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
        raise RunError(
            f"Run {run.info.run_name} ({run_id}, {run.info.status}) has no model. If it was "
            f"stopped, finish it with python ray_jobs/train.py --resume {run_id}."
        )
    try:
        # The last one: a run that was killed after logging its model logs it again when resumed.
        return mlflow.MlflowClient().get_logged_model(outputs[-1])
    except FAILURES as error:
        raise RunError(f"Cannot read the model of run {run_id}: {first_line(error)}.") from error


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
        raise RunError(f"{model}: its model has no checksum, so it was not logged by train.py.")
    for expected in checksums:
        check_sha256(
            files[0],
            expected,
            str(model),
            "Restore the artifact from a copy, or promote another run.",
        )
    return files[0]
