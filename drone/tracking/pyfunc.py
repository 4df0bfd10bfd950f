"""The model as MLflow serves it: MLflow imports this module and passes it the ONNX file.

Input: a column `image` of base64 text (or bytes). Output: `label`, `index`, and a probability per
class.
"""

import base64
import binascii
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException

from drone.errors import ImageError
from drone.serving.predictor import Predictor


class ServedClassifier:
    """Classifies images through the same predictor as every other server."""

    def __init__(self, onnx_file: Path) -> None:
        """Opens the exported model."""
        self._predictor = Predictor(onnx_file)

    def predict(self, model_input: pd.DataFrame) -> pd.DataFrame:
        """Returns a row per image."""
        return pd.DataFrame([self._predict(value) for value in model_input["image"]])

    def _predict(self, value: str | bytes) -> dict[str, Any]:
        try:
            data = base64.b64decode(value, validate=True) if isinstance(value, str) else value
            prediction = self._predictor.predict(data)
        except (ImageError, binascii.Error) as error:
            # MLflow answers this error with 400; any other would be a 500 and a traceback.
            raise MlflowException.invalid_parameter_value(f"Cannot read the image: {error}") from (
                error
            )
        return {
            "label": prediction.label,
            "index": prediction.index,
            **prediction.probabilities,
        }


def _load_pyfunc(path: str) -> ServedClassifier:
    """Returns the model; MLflow calls this function by its name."""
    return ServedClassifier(Path(path))
