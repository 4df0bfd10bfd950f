"""The model as MLflow serves it: this file is logged as code, so that nothing is pickled.

Input: a column `image` of base64 text (or bytes). Output: `label`, `index`, and a probability per
class.
"""

import base64
import binascii
from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import pandas as pd
from mlflow.exceptions import MlflowException

from drone.errors import ImageError
from drone.serving.predictor import Predictor


class ServedClassifier(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Classifies images through the same predictor as every other server."""

    def load_context(self, context: Any) -> None:
        """Opens the exported model."""
        self.predictor = Predictor(Path(context.artifacts["onnx"]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Returns a row per image."""
        return pd.DataFrame([self._predict(value) for value in model_input["image"]])

    def _predict(self, value: str | bytes) -> dict[str, Any]:
        try:
            data = base64.b64decode(value, validate=True) if isinstance(value, str) else value
            prediction = self.predictor.predict(data)
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


# MLflow runs this file to load the model, and takes what it sets here.
mlflow.models.set_model(ServedClassifier())
