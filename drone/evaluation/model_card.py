"""The model card of a registered model (Mitchell et al. 2019): what it is, for what, how good.

It is made from what was logged: the settings, the data set and the metrics of the evaluation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape

from drone.data.dataset import SPLITS
from drone.evaluation.metrics import Proportion, wilson
from drone.labels import NONE, ClassSet

_WEAK_RECALL = 0.8
"""Drone recall below which a condition is among the limits."""

_FEW_IMAGES = 50
"""Test images of a class below which its figures are said to be rough."""

UNKNOWN_LICENCE = "unknown"
"""Licence of images that nothing says anything about."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a card is made from."""

    name: str
    """Name of the registered model."""

    version: str
    classes: ClassSet
    training: Mapping[str, str]
    """Settings and origins, in the order in which they are shown."""

    images: pd.DataFrame
    """Columns class_name and split, one row per image of the data set."""

    licences: Mapping[str, int]
    """Number of images by licence."""

    metrics: Mapping[str, Any]
    """Content of metrics.json of the evaluation on the test split."""

    decision: Mapping[str, Any]
    """The gate's decision."""


def render(facts: ModelFacts) -> str:
    """Returns the card as a page of HTML that loads nothing."""
    environment = Environment(
        loader=PackageLoader("drone.evaluation"), autoescape=select_autoescape()
    )
    return environment.get_template("model_card.html").render(
        facts=facts,
        summary=summary(facts),
        intended_use=intended_use(facts.classes),
        limits=limits(facts),
        splits=_splits(facts),
        by_class=_by_class(facts.metrics),
        conditions=_conditions(facts.metrics),
        operating_point=_operating_point(facts.metrics),
    )


def summary(facts: ModelFacts) -> str:
    """Returns the result in a sentence."""
    metrics = facts.metrics
    low, high = metrics["accuracy_95"]
    text = (
        f"{metrics['accuracy']:.1%} of {metrics['support']} test images right (95 % interval "
        f"{low:.1%} to {high:.1%}), macro F1 {metrics['macro_f1']:.3f}, calibration error "
        f"{metrics['ece']:.3f}"
    )
    bird_or_drone = metrics.get("bird_or_drone_accuracy")
    return text + ("." if bird_or_drone is None else f"; bird against drone {bird_or_drone:.1%}.")


def intended_use(classes: ClassSet) -> list[str]:
    """Returns what the model is for, in sentences."""
    uses = [
        f"It sorts images that show one object, large in the image, into {len(classes)} classes, "
        f"and calls what is like none of its training images {NONE!r}.",
    ]
    if classes.tells_drones:
        uses.append(
            "It can raise an alarm for drones. Somebody, or another sensor, has to confirm an "
            "alarm before anything is done about it."
        )
    uses.append(
        "Small objects are to be cut out by boxes first; the model looks for nothing in an image."
    )
    return uses


def limits(facts: ModelFacts) -> list[str]:
    """Returns what the model must not be relied upon for, from its own figures, in sentences."""
    rows = facts.metrics["by_class"].items()
    found = [
        f"{name} has {row['support']:.0f} test images, so its figures are rough."
        for name, row in rows
        if 0 < row["support"] < _FEW_IMAGES
    ]
    missing = [name for name, row in rows if row["support"] == 0]
    if missing:
        found.append(f"Not tested, for lack of images: {', '.join(missing)}.")
    for row in _first_weak_conditions(facts.metrics):
        recall = row["drone_recall"]["value"]
        found.append(f"From this level on drones are missed: {row['text']} (recall {recall:.2f}).")
    if not facts.metrics["known"]["kinds"]:
        found.append(
            f"It was not tested on images of anything else: how well it says {NONE!r} is unknown."
        )
    found.append(
        "The test images are from the same sources as the training images; elsewhere expect less."
    )
    return found


def _first_weak_conditions(metrics: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the mildest level of each condition at which too many drones are missed."""
    weak: dict[str, Mapping[str, Any]] = {}
    for row in (metrics.get("conditions") or {}).get("rows", []):
        recall = row["drone_recall"]
        if row["condition"] and recall and recall["value"] < _WEAK_RECALL:
            weak.setdefault(row["condition"], row)
    return list(weak.values())


def _splits(facts: ModelFacts) -> list[list[object]]:
    counts = pd.crosstab(facts.images["class_name"], facts.images["split"])
    counts = counts.reindex(index=[*facts.classes, NONE], columns=list(SPLITS), fill_value=0)
    rows = counts[counts.sum(axis=1) > 0]
    return [[name, *map(int, row)] for name, row in zip(rows.index, rows.to_numpy(), strict=True)]


def _by_class(metrics: Mapping[str, Any]) -> list[tuple[str, float, Proportion, float]]:
    """Returns name, precision, recall with its interval, and F1 of each class with test images."""
    rows = []
    for name, row in metrics["by_class"].items():
        support = int(row["support"])
        if support:
            low, high = wilson(row["recall"], support)
            recall = Proportion(row["recall"], low, high, support)
            rows.append((name, row["precision"], recall, row["f1"]))
    return rows


def _conditions(metrics: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    rows: Sequence[Mapping[str, Any]] = (metrics.get("conditions") or {}).get("rows", [])
    return rows


def _operating_point(metrics: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns the figures by the recall that is demanded, where it can be reached."""
    point = metrics.get("operating_point") or {}
    return [(recall, row) for recall, row in point.get("at_recall", {}).items() if row]
