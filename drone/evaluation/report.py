"""The report of an evaluation: one HTML file that needs nothing beside it, and its parts."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from numpy.typing import NDArray
from PIL import Image

from drone.data.embed import as_jpeg, data_uri
from drone.evaluation import plots
from drone.evaluation.metrics import Answers, Scores, describe, worst_mistakes
from drone.evaluation.sizes import Comparison

GALLERY_MOST = 25
"""Misclassified pictures shown of each class."""

_THUMBNAIL_PX = 160


@dataclass(frozen=True)
class Subject:
    """What was evaluated, for the head of the report."""

    title: str
    facts: Mapping[str, str]
    """Run, data set, fingerprint and the like, in the order to show."""

    history: pd.DataFrame
    """Metrics by epoch; may be empty."""

    best_epoch: int | None

    by_size: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Of a model of mixed resolutions: see `sizes.by_size`."""

    comparisons: Sequence[Comparison] = ()
    """Of a model of mixed resolutions, against pictures of one size."""


def write(
    folder: Path,
    answers: Answers,
    scores: Scores,
    subject: Subject,
    pixels_of: Callable[[NDArray[np.int64]], NDArray[np.uint8]],
) -> Path:
    """Writes report.html, metrics.json, predictions.csv and the figures into a folder.

    Args:
        folder: made if it is not there.
        answers: of the model.
        scores: of the answers.
        subject: what was evaluated.
        pixels_of: gives the pictures at some positions, (M, side_px, side_px, 3) uint8.

    Returns:
        The report's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"confusion": plots.confusion(scores.confusion_KK, answers.classes)}
    figures["reliability"] = plots.reliability(answers)
    if len(subject.history) and subject.best_epoch is not None:
        figures["curves"] = plots.curves(subject.history, subject.best_epoch)
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")
    answers.table().to_csv(folder / "predictions.csv", index=False)
    content = {"subject": subject.title, **dict(subject.facts), **scores.as_dict()}
    if subject.comparisons:
        subject.by_size.to_csv(folder / "by_size.csv", index=False)
        content["by_size"] = subject.by_size.to_dict("records")
        content["comparisons"] = [asdict(comparison) for comparison in subject.comparisons]
    (folder / "metrics.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    environment = Environment(
        loader=PackageLoader("drone.evaluation"), autoescape=select_autoescape()
    )
    html = environment.get_template("report.html").render(
        subject=subject,
        sentence=describe(scores),
        scores=scores,
        classes=answers.classes,
        by_class=scores.by_class.to_dict("index"),
        figures={name: data_uri((folder / f"{name}.png").read_bytes()) for name in figures},
        gallery=_gallery(answers, pixels_of),
        most=GALLERY_MOST,
    )
    target = folder / "report.html"
    target.write_text(html, "utf-8")
    return target


def _gallery(
    answers: Answers, pixels_of: Callable[[NDArray[np.int64]], NDArray[np.uint8]]
) -> dict[str, dict[str, object]]:
    """The worst mistakes of each class, with the pictures."""
    gallery: dict[str, dict[str, object]] = {}
    for index, name in enumerate(answers.classes):
        shown = worst_mistakes(answers, index, GALLERY_MOST)
        wrong = (answers.labels_N == index) & (answers.predicted_N != index)
        pictures = pixels_of(np.array(shown, dtype=np.int64))
        gallery[name] = {
            "wrong": int(wrong.sum()),
            "support": int((answers.labels_N == index).sum()),
            "items": [
                {
                    "image": _thumbnail(pixels),
                    "path": answers.paths[position],
                    "predicted": answers.classes[answers.predicted_N[position]],
                    "confidence": float(answers.confidence_N[position]),
                    "own": float(answers.probs_NK[position, index]),
                }
                for position, pixels in zip(shown, pictures, strict=True)
            ],
        }
    return gallery


def _thumbnail(pixels: NDArray[np.uint8]) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    return as_jpeg(image)
