"""Which labels are likely wrong, and what accuracy they allow: confident learning.

A classifier on frozen features is asked about each picture by a model that did not learn from it
or its near duplicates; labels that it confidently contradicts are suspects (Northcutt, Jiang and
Chuang 2021, "Confident Learning", by the library cleanlab). Axes: N pictures, D features, K
classes.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from cleanlab.count import compute_confident_joint, estimate_joint
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drone.data.augment import normalise
from drone.data.dataset import Dataset
from drone.errors import DataError
from drone.evaluation.asking import Gather, Track, ask
from drone.model.config import ModelConfig
from drone.model.inference import mirrored_too
from drone.model.mobilenet import IMAGENET_MEAN, IMAGENET_STD, build
from drone.model.weights import Weights

FOLDS = 5
_COMPONENTS = 256
_STRENGTHS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Values of C, the inverse regularisation, of which the one with the least log loss is taken."""

_RESAMPLES = 500


def of_dataset(
    dataset: Dataset, weights: Weights, track: Track
) -> tuple["LabelIssues", pd.DataFrame]:
    """Looks for wrong labels among all kept pictures of a data set.

    Returns:
        What was found, and the suspects with `md5`, `path` and `split` in front.

    Raises:
        DataError: a class has too few different pictures.
    """
    rows = dataset.packed()
    rows = rows[rows["kept"]].reset_index(drop=True)
    stored_N = rows["pixel_row"].to_numpy(np.int64, copy=True)
    features_ND = frozen_features(
        np.full(len(rows), dataset.preprocessing.side_px),
        lambda positions_B: dataset.pixels(stored_N[positions_B]),
        weights,
        track,
    )
    index = {name: number for number, name in enumerate(dataset.classes)}
    labels_N = rows["class_name"].map(index).to_numpy(np.int64)
    groups = list(rows["group"])
    probs_NK = out_of_fold(features_ND, labels_N, groups)
    issues = find(probs_NK, labels_N, groups, dataset.classes, len(dataset.rows("test")))
    told = rows.loc[issues.suspects["position"], ["md5", "path", "split"]].reset_index(drop=True)
    return issues, pd.concat([told, issues.suspects.drop(columns="position")], axis=1)


def frozen_features(
    sides_N: NDArray[np.int64], gather: Gather, weights: Weights, track: Track
) -> NDArray[np.float32]:
    """Pooled features of MobileNet_V2 as it comes, (N, 1280): the mean with the mirror image's.

    Args:
        sides_N: of the pictures.
        gather: gives the pictures at some positions, (B, side, side, 3) uint8.
        weights: of the backbone.
        track: passes numbers on and shows how far they are.
    """
    model = build(ModelConfig(unfreeze_depth=0), 2, 0, weights.state())
    model = model.to(memory_format=torch.channels_last).eval()
    mean_C, std_C = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)

    def look(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        images = mirrored_too(normalise(torch.from_numpy(pixels_NHWC), mean_C, std_C))
        both = model.stem(images.contiguous(memory_format=torch.channels_last)).float()
        upright_ND, mirrored_ND = both.numpy().reshape(2, len(pixels_NHWC), -1)
        mean_ND: NDArray[np.float32] = (upright_ND + mirrored_ND) / 2
        return mean_ND

    return ask(look, sides_N, gather, track, "looking")


def out_of_fold(
    features_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    groups_N: Sequence[str],
    seed: int = 0,
) -> NDArray[np.float64]:
    """What logistic regression says of each picture when its whole group was held out, (N, K).

    Raises:
        DataError: a class has too few groups to be held out in turn.
    """
    table = pd.DataFrame({"label": labels_N, "group": groups_N})
    fewest = int(table.groupby("label")["group"].nunique().min())
    if fewest < FOLDS:
        raise DataError(
            f"A class has {fewest} different pictures; to look for wrong labels each needs {FOLDS}."
        )
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    tried_SNK = np.zeros((len(_STRENGTHS), len(labels_N), int(labels_N.max()) + 1))
    for learnt, held in folds.split(features_ND, labels_N, groups_N):
        components = min(_COMPONENTS, len(learnt) - 1, features_ND.shape[1])
        reduce = make_pipeline(StandardScaler(), PCA(components, random_state=seed))
        reduced = reduce.fit_transform(features_ND[learnt])
        for number, strength in enumerate(_STRENGTHS):
            model = LogisticRegression(C=strength, max_iter=300)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # Near enough for a ranking.
                model.fit(reduced, labels_N[learnt])
            tried_SNK[number, held] = model.predict_proba(reduce.transform(features_ND[held]))
    tried_SNK /= tried_SNK.sum(axis=2, keepdims=True)
    losses = [log_loss(labels_N, probs_NK) for probs_NK in tried_SNK]
    best_NK: NDArray[np.float64] = tried_SNK[int(np.argmin(losses))]
    return best_NK


@dataclass(frozen=True)
class Ceiling:
    """The accuracy on the test split that a model which is never wrong would be given."""

    accuracy: float
    low: float
    high: float
    """95 % of resampled pictures and test splits lie between."""


@dataclass(frozen=True)
class LabelIssues:
    """What the pictures say against their labels."""

    suspects: pd.DataFrame
    """Worst first: `position`, `given`, `suggested` (class names), `confidence` (probability of
    the suggested class), `own` (of the given one), `quality` (0 worst to 1)."""

    joint_KK: NDArray[np.float64]
    """Estimated share of all pictures by given class (row) and true class (column); sums to 1."""

    accuracy: float
    """Share of labels that the held-out answers agree with."""

    ceiling: Ceiling


def find(
    probs_NK: NDArray[np.float64],
    labels_N: NDArray[np.int64],
    groups_N: Sequence[str],
    classes: Sequence[str],
    num_test: int,
    seed: int = 0,
) -> LabelIssues:
    """Ranks the labels and estimates how many are wrong.

    Confident contradictions are counted, a class's own mean confidence being the threshold, and
    scaled to the classes' sizes. A model that is confidently wrong counts as wrong labels too, so
    the ceiling is rather too low than too high.

    Args:
        probs_NK: of models that had not seen the picture; see `out_of_fold`.
        labels_N: class indices as given.
        groups_N: near duplicates share one; resampled together.
        classes: in the order of their indices.
        num_test: pictures in the test split, for the interval.
        seed: of the resampling.
    """
    joint_KK = _joint(labels_N, probs_NK)
    order = find_label_issues(
        labels_N, probs_NK, return_indices_ranked_by="normalized_margin", n_jobs=1
    )
    quality_N = get_label_quality_scores(labels_N, probs_NK, method="normalized_margin")
    names = np.array(classes)
    best_N = probs_NK.argmax(axis=1)
    suspects = pd.DataFrame(
        {
            "position": order,
            "given": names[labels_N[order]],
            "suggested": names[best_N[order]],
            "confidence": probs_NK[order, best_N[order]],
            "own": probs_NK[order, labels_N[order]],
            "quality": quality_N[order],
        }
    )
    return LabelIssues(
        suspects=suspects[suspects["given"] != suspects["suggested"]].reset_index(drop=True),
        joint_KK=joint_KK,
        accuracy=float((best_N == labels_N).mean()),
        ceiling=_ceiling(joint_KK, probs_NK, labels_N, groups_N, num_test, seed),
    )


def _joint(labels_N: NDArray[np.int64], probs_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    counts = compute_confident_joint(labels_N, probs_NK)
    joint: NDArray[np.float64] = estimate_joint(labels_N, probs_NK, confident_joint=counts)
    return joint


def _ceiling(
    joint_KK: NDArray[np.float64],
    probs_NK: NDArray[np.float64],
    labels_N: NDArray[np.int64],
    groups_N: Sequence[str],
    num_test: int,
    seed: int,
) -> Ceiling:
    rng = np.random.default_rng(seed)
    numbers = pd.factorize(np.asarray(groups_N))[0]
    members = pd.Series(np.arange(len(labels_N))).groupby(numbers).apply(np.array)
    values = []
    for _ in range(_RESAMPLES):
        drawn = rng.integers(len(members), size=len(members))
        taken = np.concatenate(members.to_numpy()[drawn])
        if len(np.unique(labels_N[taken])) < probs_NK.shape[1]:
            continue
        right = float(np.trace(_joint(labels_N[taken], probs_NK[taken])))
        values.append(rng.binomial(num_test, min(right, 1.0)) / max(num_test, 1))
    low, high = np.quantile(values, [0.025, 0.975]) if values else (0.0, 1.0)
    return Ceiling(float(np.trace(joint_KK)), float(low), float(high))


def wrong_table(issues: LabelIssues, classes: Sequence[str]) -> pd.DataFrame:
    """Estimated share of each given class (row) that truly is each class (column)."""
    rows = issues.joint_KK.sum(axis=1, keepdims=True)
    shares = issues.joint_KK / np.maximum(rows, 1e-12)
    return pd.DataFrame(shares, index=list(classes), columns=list(classes))
