"""The model as MLflow serves it: MLflow imports this module and passes it the ONNX file.

Input: a column `image` of base64 text or data URLs (or bytes). Output: `label`, `index`, a
probability per class, `known`, and `error`: why an image has no prediction, else empty.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from drone.errors import ImageError
from drone.serving.predictor import Predictor
from drone.serving.text_body import decode_if_text, decode_text

KNOWN_COLUMN, ERROR_COLUMN = "known", "error"


class ServedClassifier:
    """Classifies images through the same predictor as every other server."""

    def __init__(self, onnx_file: Path) -> None:
        """Opens the exported model."""
        self._predictor = Predictor(onnx_file)

    def predict(self, model_input: pd.DataFrame) -> pd.DataFrame:
        """Returns a row per image; one that cannot be read has an error and no other value."""
        rows = [self._predict(value) for value in model_input["image"]]
        columns = ["label", "index", *self._predictor.info.classes, KNOWN_COLUMN, ERROR_COLUMN]
        answers = pd.DataFrame(rows, columns=columns)
        # As objects: missing numbers would be NaN, which JSON does not have.
        return (
            answers
            if not answers[ERROR_COLUMN].any()
            else answers.astype(object).where(answers.notna(), None)
        )

    def _predict(self, value: object) -> dict[str, Any]:
        try:
            prediction = self._predictor.predict(_image_in(value))
        except ImageError as error:
            return {ERROR_COLUMN: f"Cannot read the image: {error}"}
        return {
            "label": prediction.label,
            "index": prediction.index,
            **prediction.probabilities,
            KNOWN_COLUMN: prediction.known,
            ERROR_COLUMN: "",
        }


def _image_in(value: object) -> bytes:
    try:
        if isinstance(value, str):
            return decode_text(value.encode("utf-8", "surrogatepass"))
        if isinstance(value, bytes | bytearray):
            return decode_if_text(bytes(value))
    except ValueError as error:
        raise ImageError("non-media", f"It is text, but {error}.") from error
    raise ImageError("empty", "The value is neither base64 nor a data URL.")


def _load_pyfunc(path: str) -> ServedClassifier:
    """Returns the model; MLflow calls this function by its name."""
    return ServedClassifier(Path(path))
