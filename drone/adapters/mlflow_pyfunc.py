"""The model as MLflow serves it: this file is logged as code, so that nothing is pickled.

In: a column `image` of pictures as base64 text (or bytes). Out: `label`, `index`, and a
probability for each class.
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
    """Answers for pictures through the same predictor as every other server."""

    def load_context(self, context: Any) -> None:
        """Names the exported model; it starts with the first question."""
        self.predictor = Predictor(Path(context.artifacts["onnx"]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """A row for each picture."""
        return pd.DataFrame([self._answer(value) for value in model_input["image"]])

    def _answer(self, value: str | bytes) -> dict[str, Any]:
        try:
            data = base64.b64decode(value, validate=True) if isinstance(value, str) else value
            found = self.predictor.predict(data)
        except (ImageError, binascii.Error) as error:
            raise MlflowException.invalid_parameter_value(
                f"No picture that can be read: {error}"
            ) from error
        return {"label": found.label, "index": found.index, **found.probabilities}


mlflow.models.set_model(ServedClassifier())
