"""The evaluation report: one self-contained HTML file, and its tables and figures beside it."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from numpy.typing import NDArray
from PIL import Image

from drone.data.embed import data_uri, heat_map_script, jpeg_data_uri
from drone.evaluation import conditions, operating_point, plots
from drone.evaluation.batch_inference import LoadPixels
from drone.evaluation.conditions import Card
from drone.evaluation.evidence import LoadEvidence, OutsideBoxes
from drone.evaluation.metrics import Predictions, Scores, describe, worst_confusions, worst_mistakes
from drone.evaluation.mixed_resolution import Comparison
from drone.evaluation.none_of_these import KnownScores
from drone.evaluation.operating_point import OperatingPoint
from drone.serving.evidence import encode, normalised

_MAX_GALLERIES = 20
"""Classes whose misclassified images are shown."""

_MAX_CONFUSIONS = 20
"""Pairs of classes in the table of confusions."""

_MAX_GALLERY = 25
"""Misclassified images shown per class."""

_THUMBNAIL_PX = 160


@dataclass(frozen=True)
class ReportHeader:
    """What was evaluated, for the top of the report."""

    title: str
    facts: Mapping[str, str]
    """Run, data set, fingerprint and the like, in display order."""

    history: pd.DataFrame
    """Training metrics by epoch; may be empty."""

    best_epoch: int | None
    """Epoch whose weights were evaluated; None if unknown."""

    known: KnownScores
    """How well images of the classes are told from negatives."""

    by_size: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Result of `mixed_resolution.by_size`; empty unless the model takes several resolutions."""

    comparisons: Sequence[Comparison] = ()
    """Multi-resolution inference against other variants; empty likewise."""

    card: Card | None = None
    """Scores under worse conditions, if they were measured."""

    operating_point: OperatingPoint | None = None
    """Drones that raise an alarm, and false alarms; None if there are no drones to tell."""

    outside_boxes: OutsideBoxes | None = None
    """How much of the evidence lies outside of boxes; None without any."""


@dataclass(frozen=True)
class Images:
    """Access to the evaluated images by their positions."""

    load_pixels: LoadPixels
    """Loads images of one size, (M, side_px, side_px, 3) uint8."""

    load_evidence: LoadEvidence


def write(
    folder: Path,
    predictions: Predictions,
    scores: Scores,
    header: ReportHeader,
    images: Images,
) -> Path:
    """Writes report.html, metrics.json, predictions.csv and the figures into a folder.

    Args:
        folder: Created if it does not exist.
        predictions: Predictions of the model.
        scores: Metrics of the predictions.
        header: What was evaluated.
        images: The images.

    Returns:
        Path of the report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = _save_figures(folder, predictions, scores, header)
    # Quoted: a carriage return in a path would end the line for those who read it.
    quoting = csv.QUOTE_NONNUMERIC
    predictions.table().to_csv(folder / "predictions.csv", index=False, quoting=quoting)
    if header.comparisons:
        header.by_size.to_csv(folder / "by_size.csv", index=False)
    if header.card:
        conditions.table(header.card).to_csv(folder / "conditions.csv", index=False)
    if header.operating_point:
        points = operating_point.table(header.operating_point)
        points.to_csv(folder / "operating_point.csv", index=False)
    metrics = json.dumps(_metrics(scores, header), indent=1) + "\n"
    (folder / "metrics.json").write_text(metrics, "utf-8")
    gallery = _gallery(predictions, images)
    target = folder / "report.html"
    html = _render(predictions, scores, header, figures, gallery)
    # The folder that was evaluated may have a name that is not UTF-8.
    target.write_text(html, "utf-8", errors="backslashreplace")
    return target


def _render(
    predictions: Predictions,
    scores: Scores,
    header: ReportHeader,
    figures: Mapping[str, str],
    gallery: Mapping[str, Mapping[str, object]],
) -> str:
    # Paths and class names come from the user's folders, so they are escaped.
    environment = Environment(
        loader=PackageLoader("drone.evaluation"), autoescape=select_autoescape()
    )
    return environment.get_template("report.html").render(
        header=header,
        summary=describe(scores),
        scores=scores,
        classes=predictions.classes,
        by_class=scores.by_class.to_dict("index"),
        confusions=worst_confusions(scores, _MAX_CONFUSIONS),
        figures=figures,
        gallery=gallery,
        max_gallery=_MAX_GALLERY,
        heat_map=heat_map_script(),
    )


def _save_figures(
    folder: Path, predictions: Predictions, scores: Scores, header: ReportHeader
) -> dict[str, str]:
    """Saves the figures as PNG and returns them as data URIs by name."""
    figures = {
        "confusion": plots.confusion(scores.confusion_KK, predictions.classes),
        "reliability": plots.reliability(predictions),
    }
    if len(header.history) and header.best_epoch is not None:
        figures["curves"] = plots.curves(header.history, header.best_epoch)
    if header.card:
        figures["conditions"] = plots.conditions(header.card)
    point = header.operating_point
    if point and (point.num_birds or point.num_negatives):
        figures["operating_point"] = plots.operating_point(point)
    # Also as files: MLflow shows images that are artifacts of their own.
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")
    return {name: data_uri((folder / f"{name}.png").read_bytes()) for name in figures}


def _metrics(scores: Scores, header: ReportHeader) -> dict[str, Any]:
    """Returns the content of metrics.json."""
    # Scores last: a fact of the same name must not replace one that the gate reads.
    metrics = {"title": header.title, **header.facts, **scores.as_dict()}
    metrics["known"] = header.known.as_dict()
    if header.outside_boxes:
        metrics["outside_boxes"] = header.outside_boxes.as_dict()
    if header.comparisons:
        metrics["by_size"] = header.by_size.to_dict("records")
        metrics["comparisons"] = [asdict(comparison) for comparison in header.comparisons]
    if header.card:
        metrics["conditions"] = header.card.as_dict()
    if header.operating_point:
        metrics["operating_point"] = header.operating_point.as_dict()
    return metrics


def check_metrics(metrics: Mapping[str, Any]) -> None:
    """Checks that metrics.json holds what the gate and a study read from it.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: It does not.
    """
    for name in ("accuracy", "macro_f1", "ece"):
        float(metrics[name])
    for row in metrics["by_class"].values():
        float(row["recall"]), float(row["support"])
    for part in (metrics["known"], *metrics["known"]["kinds"].values()):
        float(part["accepted"]["value"])
    for row in metrics["known"]["kinds"].values():
        float(row["auroc"]["value"])
    for row in metrics.get("by_size", []):
        float(row["images"]), int(row["side_px"])


def _gallery(predictions: Predictions, images: Images) -> dict[str, dict[str, object]]:
    """Returns the worst mistakes of each class, with thumbnails."""
    gallery: dict[str, dict[str, object]] = {}
    # Of many classes those with most mistakes, so that the report stays a few megabytes.
    wrong_N = predictions.labels_N != predictions.predicted_N
    counts_K = np.bincount(predictions.labels_N[wrong_N], minlength=len(predictions.classes))
    shown = np.sort(np.argsort(-counts_K, kind="stable")[:_MAX_GALLERIES])
    for index, name in ((int(index), predictions.classes[index]) for index in shown):
        # With its type, since an empty list would become an array of floats.
        positions_M = np.array(worst_mistakes(predictions, index, _MAX_GALLERY), dtype=np.int64)
        of_class = predictions.labels_N == index
        pixels_M, maps_M = images.load_pixels(positions_M), images.load_evidence(positions_M)
        gallery[name] = {
            "wrong": int((of_class & (predictions.predicted_N != index)).sum()),
            "support": int(of_class.sum()),
            "items": [
                {
                    "image": _thumbnail(pixels),
                    "evidence": encode(normalised(maps_KHW[predictions.predicted_N[position]])),
                    "path": predictions.paths[position],
                    "predicted": predictions.classes[predictions.predicted_N[position]],
                    "confidence": float(predictions.confidence_N[position]),
                    "true_probability": float(predictions.probs_NK[position, index]),
                }
                for position, pixels, maps_KHW in zip(positions_M, pixels_M, maps_M, strict=True)
            ],
        }
    return gallery


def _thumbnail(pixels: NDArray[np.uint8]) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    return jpeg_data_uri(image)
