"""Models in MLflow: ONNX with the preprocessing inside."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from PIL import Image

from drone.errors import RunError
from drone.tracking import pyfunc
from drone.tracking.failures import FAILURES
from drone.tracking.runs import find_run

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

    version: str
    """Of the registered model; empty for a run's."""


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
    return ModelRef(info.run_id, str(info.run_name), "")


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
        names = [model.name for model in client.search_registered_models()]
        raise RunError(
            f"There is no model {uri}. Registered models: {', '.join(names) or 'none yet'}."
        ) from error
    return ModelRef(str(entry.run_id), name, str(entry.version))


def logged_model(run_id: str) -> str:
    """Returns the URI of the model that a run logged last.

    Raises:
        RunError: The run logged no model.
    """
    run = find_run(run_id)
    outputs = [output.model_id for output in run.outputs.model_outputs] if run.outputs else []
    if not outputs:
        raise RunError(
            f"Run {run.info.run_name} ({run_id}, {run.info.status}) has no model. If it was "
            f"stopped, finish it with python ray_jobs/train.py --resume {run_id}."
        )
    # The last one: a run that was killed after logging its model logs it again when resumed.
    return f"models:/{outputs[-1]}"


def fetch_onnx(run_id: str, target: Path) -> Path:
    """Downloads the exported model of a run.

    Returns:
        The ONNX file.

    Raises:
        RunError: The run logged no model.
    """
    uri = logged_model(run_id)
    try:
        folder = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(target))
    except FAILURES as error:
        raise RunError(f"Cannot read the model of run {run_id}: {error}") from error
    # The path below the folder of the model is for MLflow to choose.
    files = sorted(Path(folder).rglob("*.onnx"))
    if not files:
        raise RunError(f"The model of run {run_id} holds no ONNX file.")
    return files[0]
