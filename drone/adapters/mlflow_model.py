"""Models in MLflow: ONNX with the preprocessing inside, answering for pictures."""

import base64
import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from PIL import Image

from drone.adapters.mlflow_tracking import FAILURES, download, find_run
from drone.adapters.ray_cluster import ROOT
from drone.data.batches import Batches
from drone.data.bins import PIXEL_BUDGET
from drone.data.dataset import Dataset, Split
from drone.errors import RunError
from drone.evaluation.asking import ask
from drone.evaluation.calibration import choose_threshold, fit_temperature
from drone.model import export, mobilenet
from drone.serving.predictor import Predictor, calibrated
from drone.training import checkpoint
from drone.training.config import TrainConfig

NAME = "model"
ONNX_FILE = "model.onnx"

MOST_DIFFERENCE = 1e-3
"""Of a probability between the trained and the exported model, both in fp32."""

_COMPARED = 16
"""Pictures of each size."""

_REQUIREMENTS = ("mlflow", "onnxruntime", "pillow", "numpy", "pandas")


def log_model(onnx_file: Path, classes: Sequence[str], metadata: dict[str, str]) -> str:
    """Logs an exported model to the active run.

    Returns:
        Its URI.
    """
    outputs = [ColSpec(DataType.string, "label"), ColSpec(DataType.long, "index")]
    outputs += [ColSpec(DataType.double, name) for name in classes]
    info = mlflow.pyfunc.log_model(
        name=NAME,
        python_model=str(Path(__file__).with_name("mlflow_pyfunc.py")),
        artifacts={"onnx": str(onnx_file)},
        code_paths=[str(ROOT / "drone")],
        signature=ModelSignature(
            inputs=Schema([ColSpec(DataType.string, "image")]), outputs=Schema(outputs)
        ),
        input_example=pd.DataFrame({"image": [_example()]}),
        pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
        metadata=metadata,
    )
    return str(info.model_uri)


def _example() -> str:
    """A small picture as base64."""
    buffer = io.BytesIO()
    ramp = np.linspace(90, 220, 32, dtype=np.uint8)[:, None, None]
    Image.fromarray(np.broadcast_to(ramp, (32, 32, 3)).copy()).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class Named:
    """A model by the names that people know it by."""

    run_id: str
    name: str
    """Of the registered model, or of the run."""

    version: str
    """Of the registered model; empty for a run's."""


def named(uri: str | None, run: str | None) -> Named:
    """The model that a URI or a run names.

    Args:
        uri: such as models:/drone-classifier@champion or models:/drone-classifier/3.
        run: whose model; only if there is no URI.

    Raises:
        RunError: there is none.
    """
    if uri is not None:
        return _registered(uri)
    found = find_run(str(run))
    return Named(found.info.run_id, str(found.info.run_name), "")


def _registered(uri: str) -> Named:
    if not uri.startswith("models:/"):
        raise RunError(f"{uri!r} names no model; write models:/NAME@ALIAS or models:/NAME/VERSION.")
    name, _, alias = uri.removeprefix("models:/").partition("@")
    client = mlflow.MlflowClient()
    try:
        if alias:
            found = client.get_model_version_by_alias(name, alias)
        else:
            name, _, number = name.partition("/")
            found = client.get_model_version(name, number)
    except FAILURES as error:
        known = ", ".join(model.name for model in client.search_registered_models()) or "none yet"
        raise RunError(f"There is no model {uri}. Registered models: {known}.") from error
    return Named(str(found.run_id), name, str(found.version))


def logged_model(run_id: str) -> str:
    """The URI of the model that a run logged last.

    Raises:
        RunError: the run logged none.
    """
    run = find_run(run_id)
    outputs = [output.model_id for output in run.outputs.model_outputs] if run.outputs else []
    if not outputs:
        raise RunError(
            f"Run {run.info.run_name} ({run_id}, {run.info.status}) has no model. If it was "
            f"stopped, python ray_jobs/train.py --resume {run_id} finishes it."
        )
    return f"models:/{outputs[-1]}"


def fetch_onnx(run_id: str, target: Path) -> Path:
    """The exported model of a run.

    Raises:
        RunError: the run logged none.
    """
    uri = logged_model(run_id)
    try:
        folder = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(target))
    except FAILURES as error:
        raise RunError(f"The model of run {run_id} cannot be read: {error}") from error
    found = sorted(Path(folder).rglob("*.onnx"))
    if not found:
        raise RunError(f"The model of run {run_id} holds no ONNX file.")
    return found[0]


def read_json(run_id: str, artifact: str, target: Path) -> dict[str, Any]:
    """A JSON artifact of a run."""
    content: dict[str, Any] = json.loads(download(run_id, artifact, target).read_text("utf-8"))
    return content


def deliver(folder: Path, config: TrainConfig, dataset: Dataset, metadata: dict[str, str]) -> str:
    """Exports the best weights of a checkpoint and logs the model to the active run.

    Args:
        folder: of the checkpoint.
        config: of the run.
        dataset: that it was trained on.
        metadata: of the model, beside classes, preprocessing and fingerprint.

    Returns:
        The model's URI.

    Raises:
        RunError: the exported model does not answer as the trained one does.
    """
    model = mobilenet.build(config.model, len(dataset.classes), config.seed, None).eval()
    model.load_state_dict(checkpoint.load_best(folder))
    facts = {
        **metadata,
        "classes": json.dumps(dataset.classes),
        "preprocessing": dataset.preprocessing.to_json(),
        "fingerprint": dataset.fingerprint,
    }
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / ONNX_FILE
        export.to_onnx(model, target, dataset.preprocessing.side_px, facts)
        validation = (dataset.at_bins() if config.model.mixed else dataset).split("validation")
        predictor = Predictor(target)
        difference = _difference(model, predictor, validation)
        mlflow.log_metric("model/onnx_max_difference", difference)
        mlflow.log_metric("model/onnx_mb", target.stat().st_size / 1e6)
        if difference > MOST_DIFFERENCE:
            raise RunError(
                f"The exported model's probabilities differ from the trained one's by up to "
                f"{difference:.1e} (at most {MOST_DIFFERENCE:.0e}). It was not logged."
            )
        calm = calibration_of(predictor, validation)
        export.add_facts(target, calm)
        return log_model(target, dataset.classes, {**facts, **calm})


def calibration_of(
    predictor: Predictor, validation: Split, unsure_below: float | None = None
) -> dict[str, str]:
    """What a model's file says of how sure its answers may be: "temperature", "unsure_below".

    Args:
        predictor: the exported model.
        validation: pictures that it did not learn from, of its data set.
        unsure_below: see `Predictor.unsure_below`; None chooses it on these pictures.
    """
    probs_NK = ask(predictor.uncalibrated, validation.sides_N, validation.gather)
    temperature = fit_temperature(probs_NK, validation.labels_N)
    if unsure_below is None:
        calmer_NK = calibrated(probs_NK, temperature)
        unsure_below = choose_threshold(calmer_NK, validation.labels_N)
    return {"temperature": repr(temperature), "unsure_below": repr(unsure_below)}


def _difference(model: mobilenet.Classifier, predictor: Predictor, validation: Split) -> float:
    """Largest difference of a probability between torch and ONNX on validation pictures."""
    batches = Batches(validation.sides_N, _COMPARED, PIXEL_BUDGET).once(0, 1, _COMPARED)
    first = {int(validation.sides_N[batch[0]]): batch for batch in reversed(batches)}
    served = export.Served(model).eval()
    differences = []
    for positions in first.values():  # Some of each size.
        pixels = validation.gather(positions)
        with torch.no_grad():
            expected = served(torch.from_numpy(pixels)).numpy()
        differences.append(np.abs(expected - predictor.uncalibrated(pixels)).max())
    return float(max(differences))
