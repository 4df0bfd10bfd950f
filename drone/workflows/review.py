"""Writes the review page: finds label issues in a data set and puts them before the user."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from drone.curation import (
    advice,
    frozen_features,
    label_issues,
    learning_curve,
    plots,
    probe,
    review,
)
from drone.curation.frozen_features import FrozenFeatures
from drone.curation.label_issues import Ceiling
from drone.curation.learning_curve import LearningCurve
from drone.curation.probe import OutOfFold
from drone.data.dataset import Dataset
from drone.data.prepare import ledger
from drone.data.prepare.ledger import Decision
from drone.data.prepare.plan import command_for
from drone.errors import ConfigError, DataError
from drone.evaluation.batch_inference import Track
from drone.model import weights
from drone.model.weights import Weights
from drone.serving.evidence import encode, normalised
from drone.storage import dataset_cache
from drone.workflows.display import SILENT, Display
from drone.workflows.requests import ReviewRequest


@dataclass(frozen=True)
class ReviewResult:
    """The result of a review: what the page shows, and how many labels are probably wrong."""

    num_shown: int
    num_suspects: int
    accuracy: float
    """Share of labels that equal the out-of-fold prediction."""

    ceiling: Ceiling

    true_classes: pd.DataFrame
    """Of each given class (row), the estimated share that is of each class (column)."""

    short_names: Sequence[str]
    """Abbreviations of the classes."""

    curve: LearningCurve
    """What more images or cleaner labels would add to the accuracy."""

    advice: Sequence[str]
    """Likewise, in words."""

    prepare_again: str
    """Command that applies the decisions which the page exports."""


def write_review_page(request: ReviewRequest, display: Display = SILENT) -> ReviewResult:
    """Finds label issues and writes the page, and a table of the suspects beside it.

    Raises:
        DataError: The folder of the page does not exist, or a class has too few images.
        WeightsError: The weights cannot be loaded.
    """
    # Checked first: the features take minutes.
    check_page(request.out)
    if request.data is None:
        raise ConfigError("--data is missing: name the data set.")
    dataset = dataset_cache.open_at(request.data, notify=display.show)
    decisions = ledger.by_hand(ledger.read(dataset.folder / ledger.LEDGER_FILE))
    decided = with_copies(decisions, dataset.manifest)
    rows = dataset.packed_rows()
    kept = rows[rows["kept"]]
    probe.check_groups(kept["class_name"], kept["group"])
    backbone = weights.load(request.weights, may_be_random=False)
    features = frozen_features.compute(dataset, backbone, display.track)
    predictions = probe.out_of_fold(features.features_ND, features.labels_N, features.groups_N)
    issues, suspects = label_issues.find_in_dataset(features, predictions.probs_NK)
    curve = learning_curve.measure(features, predictions)
    # The user is not asked about an image again.
    suspects = suspects[~suspects["md5"].isin(decided)]
    suspects.to_csv(request.out.with_suffix(".csv"), index=False)
    shown = suspects.head(request.max_suspects)
    maps = _evidence(shown, features, predictions, dataset, backbone, display.track)
    items = review.build_items(dataset.manifest, shown.assign(evidence=maps), decided)
    facts = {
        "images to decide on": str(len(items)),
        "decided before": str(len(decisions)),
        "test accuracy that the labels allow": describe(issues.ceiling),
    }
    figure = plots.data_uri(plots.learning_curve(curve))
    improvements = review.Advice(advice.sentences(curve), figure)
    review.write_page(
        request.out, dataset, items, review.image_loader(dataset), facts, improvements
    )
    return ReviewResult(
        num_shown=len(items),
        num_suspects=len(suspects),
        accuracy=issues.accuracy,
        ceiling=issues.ceiling,
        true_classes=label_issues.true_class_table(issues, dataset.classes),
        short_names=dataset.classes.short_names,
        curve=curve,
        advice=improvements.sentences,
        prepare_again=command_for(dataset, decisions="DECISIONS.jsonl"),
    )


def check_page(page: Path) -> None:
    """Fails before any work if a page cannot be written where it should.

    Raises:
        DataError: Its folder does not exist.
    """
    folder = page.resolve().parent
    if not folder.is_dir():
        raise DataError(f"--out is {page}, but there is no folder {folder}. Create it.")


def _evidence(
    suspects: pd.DataFrame,
    features: FrozenFeatures,
    predictions: OutOfFold,
    dataset: Dataset,
    backbone: Weights,
    track: Track,
) -> list[str]:
    """Returns the evidence for the suggested class of each suspect, encoded for the page."""
    if suspects.empty:
        return []
    predicted_N = predictions.probs_NK.argmax(axis=1)
    weights_ND = probe.held_out_weights(predictions, features.labels_N, predicted_N)
    rows = features.rows
    positions = rows.reset_index().set_index("md5")["index"].loc[suspects["md5"]].to_numpy()
    pixel_rows = rows["pixel_row"].to_numpy(np.int64)[positions]
    maps = frozen_features.evidence_maps(
        dataset, pixel_rows, weights_ND[positions], backbone, track
    )
    return [encode(normalised(map_HW)) for map_HW in maps]


def with_copies(decisions: Mapping[str, Decision], manifest: pd.DataFrame) -> set[str]:
    """Returns the md5 of the images that the user has decided on, and of all their copies."""
    contents = set(manifest.loc[manifest["md5"].isin(list(decisions)), "content"])
    contents |= {decision.content for decision in decisions.values()}
    copies = manifest["content"].isin(contents - {""})
    return {*decisions, *manifest.loc[copies, "md5"]}


def describe(ceiling: Ceiling) -> str:
    """Returns the accuracy with its interval, as text."""
    return f"{ceiling.accuracy:.3f} ({ceiling.low:.3f} to {ceiling.high:.3f})"
