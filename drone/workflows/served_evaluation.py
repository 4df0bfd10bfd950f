"""Evaluates served answers on the images that have been labelled since."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from drone.errors import DataError
from drone.evaluation import plots
from drone.evaluation.served import accuracy_by_week, labels_by_md5
from drone.serving.keeping import SAMPLED
from drone.storage import dataset_cache
from drone.storage.kept_images import KeptImages
from drone.workflows.display import SILENT, Display
from drone.workflows.requests import EvaluateRequest
from drone.workflows.served_images import first_by_md5


@dataclass(frozen=True)
class ServedEvaluation:
    """Accuracy of served answers over time."""

    by_week: pd.DataFrame
    """See `accuracy_by_week`."""

    num_images: int
    """Images in the store."""

    table: Path
    figure: Path

    @property
    def num_labelled(self) -> int:
        """Images of the store that have a label."""
        return int(self.by_week["labelled"].sum())

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return {
            "images": self.num_images,
            "labelled": self.num_labelled,
            "by_week": self.by_week.to_dict("records"),
            "table": str(self.table),
            "figure": str(self.figure),
        }


def evaluate_served(request: EvaluateRequest, display: Display = SILENT) -> ServedEvaluation:
    """Compares served answers with the labels of a data set, and writes a table and a figure.

    The answers are those that were given, by the model of that time: the present champion may have
    been trained on these images.

    Raises:
        DataError: The store or the data set cannot be read, or no served image is labelled in it.
    """
    assert request.served is not None and request.data is not None
    stored = KeptImages(request.served).images()
    images = first_by_md5(stored, display.warn).values()
    labels = labels_by_md5(dataset_cache.open_at(request.data, notify=display.show).manifest)
    answers = pd.DataFrame(
        {
            "time": [image.time for image in images],
            "model": [image.model for image in images],
            "sampled": [SAMPLED in image.reasons for image in images],
            "answer": [image.label for image in images],
            "label": [labels.get(image.md5) for image in images],
        }
    )
    by_week = accuracy_by_week(answers)
    if by_week.empty:
        raise DataError(
            f"None of the {len(images)} images in {request.served} is labelled in {request.data}. "
            f"Label some with the page of python ray_jobs/review.py, and prepare the data set "
            f"again."
        )
    folder = request.out / "served"
    folder.mkdir(parents=True, exist_ok=True)
    table, figure = folder / "accuracy.csv", folder / "accuracy.png"
    by_week.to_csv(table, index=False)
    plots.save(plots.served_accuracy(by_week), figure)
    return ServedEvaluation(by_week, len(images), table.resolve(), figure.resolve())
