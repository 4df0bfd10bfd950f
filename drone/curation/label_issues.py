"""Label issues: labels that are probably wrong, and the test accuracy that they allow.

A classifier on frozen features predicts each image out of fold, trained on neither the image nor
its near duplicates. Labels that it confidently contradicts are suspects (Northcutt, Jiang and
Chuang 2021, "Confident Learning", as the library cleanlab implements it). Axes: N images, D
features, K classes, C values of the regularisation.
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

from drone.data.augmentation import normalise
from drone.data.dataset import Dataset
from drone.errors import DataError
from drone.evaluation.batch_inference import LoadPixels, Track, predict_in_batches
from drone.model.config import ModelConfig
from drone.model.inference import with_mirrored
from drone.model.mobilenet import IMAGENET_MEAN, IMAGENET_STD, build
from drone.model.weights import Weights

_NUM_FOLDS = 5
_NUM_COMPONENTS = 256

_INVERSE_REGULARISATION = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Values of C for logistic regression; the one of least out-of-fold log loss is chosen."""

_NUM_RESAMPLES = 500


@dataclass(frozen=True)
class Ceiling:
    """Accuracy that a model without errors would get on the test split as it is labelled."""

    accuracy: float
    low: float
    high: float
    """Bounds of the 95 % interval over resampled images and test splits."""


@dataclass(frozen=True)
class LabelIssues:
    """Suspect labels, and how many labels are probably wrong."""

    suspects: pd.DataFrame
    """One row per suspect, worst first: `position`, `given` and `suggested` (class names),
    `confidence` (probability of the suggested class), `given_probability` (of the given one) and
    `quality` (label quality, 0 worst to 1)."""

    joint_KK: NDArray[np.float64]
    """Estimated share of all images by given class (row) and true class (column); sums to 1."""

    accuracy: float
    """Share of labels that equal the out-of-fold prediction."""

    ceiling: Ceiling


def find_in_dataset(
    dataset: Dataset, weights: Weights, track: Track
) -> tuple[LabelIssues, pd.DataFrame]:
    """Finds label issues among all kept images of a data set.

    Args:
        dataset: The data set.
        weights: Pretrained weights of the backbone that computes the features.
        track: Shows progress.

    Returns:
        The label issues, and the suspects with the columns `md5`, `path` and `split` in front.

    Raises:
        DataError: A class has too few different images.
    """
    rows = dataset.packed_rows()
    rows = rows[rows["kept"]].reset_index(drop=True)
    check_groups(rows["class_name"], rows["group"])
    pixel_rows_N = rows["pixel_row"].to_numpy(np.int64, copy=True)
    features_ND = _frozen_features(
        np.full(len(rows), dataset.preprocessing.side_px),
        lambda positions_B: dataset.pixels(pixel_rows_N[positions_B]),
        weights,
        track,
    )
    index = {name: number for number, name in enumerate(dataset.classes)}
    labels_N = rows["class_name"].map(index).to_numpy(np.int64)
    groups = list(rows["group"])
    probs_NK = out_of_fold_probabilities(features_ND, labels_N, groups)
    issues = find(probs_NK, labels_N, groups, dataset.classes, len(dataset.rows("test")))
    files = rows.loc[issues.suspects["position"], ["md5", "path", "split"]].reset_index(drop=True)
    return issues, pd.concat([files, issues.suspects.drop(columns="position")], axis=1)


def check_groups(class_names: "pd.Series[str]", groups: "pd.Series[str]") -> None:
    """Checks that each class has enough images to hold some of them out.

    Args:
        class_names: Class of each image.
        groups: Group of near duplicates of each image.

    Raises:
        DataError: A class has too few groups.
    """
    counts = groups.groupby(class_names).nunique()
    too_few = ", ".join(
        f"{name} has {count}" for name, count in counts.items() if count < _NUM_FOLDS
    )
    if too_few:
        raise DataError(
            f"Finding label issues needs at least {_NUM_FOLDS} different images of each class, and "
            f"{too_few}. Add images and prepare the data set again."
        )


def _frozen_features(
    sides_N: NDArray[np.int64], load_pixels: LoadPixels, weights: Weights, track: Track
) -> NDArray[np.float32]:
    """Returns pooled backbone features, (N, 1280), averaged over each image and its mirror."""
    # Two classes because a head needs some; only the features are used.
    model = build(ModelConfig(unfreeze_depth=0), 2, 0, weights.state()).eval()
    mean_C, std_C = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)

    def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        images = with_mirrored(normalise(torch.from_numpy(pixels_NHWC), mean_C, std_C))
        both = model.stem(images.contiguous(memory_format=torch.channels_last)).float()
        upright_ND, mirrored_ND = both.numpy().reshape(2, len(pixels_NHWC), -1)
        mean_ND: NDArray[np.float32] = (upright_ND + mirrored_ND) / 2
        return mean_ND

    return predict_in_batches(predict, sides_N, load_pixels, track, "computing features")


def out_of_fold_probabilities(
    features_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    groups_N: Sequence[str],
    seed: int = 0,
) -> NDArray[np.float64]:
    """Returns probabilities from logistic regression, (N, K), each with the image held out.

    Args:
        features_ND: Features of the images.
        labels_N: Class indices.
        groups_N: Group of each image; near duplicates share one and are held out together. Each
            class needs as many as there are folds.
        seed: Seed of the folds and of the PCA.
    """
    folds = StratifiedGroupKFold(_NUM_FOLDS, shuffle=True, random_state=seed)
    probs_CNK = np.zeros((len(_INVERSE_REGULARISATION), len(labels_N), int(labels_N.max()) + 1))
    for training, held_out in folds.split(features_ND, labels_N, groups_N):
        probs_CNK[:, held_out] = _held_out_probabilities(
            features_ND[training], labels_N[training], features_ND[held_out], seed
        )
    # With float32 features the sums are off by 1e-7, and log_loss would warn.
    probs_CNK /= probs_CNK.sum(axis=2, keepdims=True)
    # One C for all folds: chosen per fold, their confidences would not be comparable.
    losses_C = [log_loss(labels_N, probs_NK) for probs_NK in probs_CNK]
    best_NK: NDArray[np.float64] = probs_CNK[int(np.argmin(losses_C))]
    return best_NK


def _held_out_probabilities(
    training_TD: NDArray[np.float32],
    labels_T: NDArray[np.int64],
    held_out_HD: NDArray[np.float32],
    seed: int,
) -> NDArray[np.float64]:
    """Returns probabilities for H held-out images from T others, (C, H, K), for each C."""
    num_components = min(_NUM_COMPONENTS, len(training_TD) - 1, training_TD.shape[1])
    # Fitted within the fold: a PCA over all images would have seen the held-out ones.
    reduce = make_pipeline(StandardScaler(), PCA(num_components, random_state=seed))
    reduced_TR = reduce.fit_transform(training_TD)
    reduced_HR = reduce.transform(held_out_HD)
    probs_CHK = []
    for inverse_regularisation in _INVERSE_REGULARISATION:
        model = LogisticRegression(C=inverse_regularisation, max_iter=300)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # Good enough for a ranking.
            model.fit(reduced_TR, labels_T)
        probs_CHK.append(model.predict_proba(reduced_HR))
    return np.stack(probs_CHK)


def find(
    probs_NK: NDArray[np.float64],
    labels_N: NDArray[np.int64],
    groups_N: Sequence[str],
    classes: Sequence[str],
    num_test: int,
    seed: int = 0,
) -> LabelIssues:
    """Ranks the labels by quality and estimates how many are wrong.

    Confident contradictions are counted, with each class's mean confidence as its threshold, and
    scaled to the sizes of the classes. A confidently wrong model also counts as wrong labels, so
    the ceiling is an underestimate rather than an overestimate.

    Args:
        probs_NK: Probabilities from models that were not trained on the image; see
            `out_of_fold_probabilities`.
        labels_N: Given class indices.
        groups_N: Group of each image; near duplicates share one and are resampled together.
        classes: Class names in the order of their indices.
        num_test: Number of images in the test split, for the ceiling's interval.
        seed: Seed of the resampling.
    """
    joint_KK = _joint(labels_N, probs_NK)
    return LabelIssues(
        suspects=_suspects(probs_NK, labels_N, classes),
        joint_KK=joint_KK,
        accuracy=float((probs_NK.argmax(axis=1) == labels_N).mean()),
        ceiling=_ceiling(joint_KK, probs_NK, labels_N, groups_N, num_test, seed),
    )


def _suspects(
    probs_NK: NDArray[np.float64], labels_N: NDArray[np.int64], classes: Sequence[str]
) -> pd.DataFrame:
    """Returns the table of `LabelIssues.suspects`."""
    # In one process: 3 ms for 800 images, where cleanlab's own pool takes 48.
    order = find_label_issues(
        labels_N, probs_NK, return_indices_ranked_by="normalized_margin", n_jobs=1
    )
    quality_N = get_label_quality_scores(labels_N, probs_NK, method="normalized_margin")
    names = np.array(classes)
    predicted_N = probs_NK.argmax(axis=1)
    suspects = pd.DataFrame(
        {
            "position": order,
            "given": names[labels_N[order]],
            "suggested": names[predicted_N[order]],
            "confidence": probs_NK[order, predicted_N[order]],
            "given_probability": probs_NK[order, labels_N[order]],
            "quality": quality_N[order],
        }
    )
    # A label can be doubtful and yet the most probable one; then there is nothing to suggest.
    return suspects[suspects["given"] != suspects["suggested"]].reset_index(drop=True)


def _joint(labels_N: NDArray[np.int64], probs_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    counts = compute_confident_joint(labels_N, probs_NK)
    joint_KK: NDArray[np.float64] = estimate_joint(labels_N, probs_NK, confident_joint=counts)
    return joint_KK


def _ceiling(
    joint_KK: NDArray[np.float64],
    probs_NK: NDArray[np.float64],
    labels_N: NDArray[np.int64],
    groups_N: Sequence[str],
    num_test: int,
    seed: int,
) -> Ceiling:
    rng = np.random.default_rng(seed)
    group_numbers_N = pd.factorize(np.asarray(groups_N))[0]
    members = pd.Series(np.arange(len(labels_N))).groupby(group_numbers_N).apply(np.array)
    values = []
    for _ in range(_NUM_RESAMPLES):
        # By group: near duplicates are not independent evidence.
        drawn_groups = rng.integers(len(members), size=len(members))
        drawn = np.concatenate(members.to_numpy()[drawn_groups])
        # cleanlab needs an image of every class.
        if len(np.unique(labels_N[drawn])) < probs_NK.shape[1]:
            continue
        right = float(np.trace(_joint(labels_N[drawn], probs_NK[drawn])))
        # Binomial, since a test split of this size scatters even if the share is known.
        values.append(rng.binomial(num_test, min(right, 1.0)) / max(num_test, 1))
    low, high = np.quantile(values, [0.025, 0.975]) if values else (0.0, 1.0)
    return Ceiling(float(np.trace(joint_KK)), float(low), float(high))


def true_class_table(issues: LabelIssues, classes: Sequence[str]) -> pd.DataFrame:
    """Returns the estimated share of each given class (row) whose true class is each column."""
    row_sums = issues.joint_KK.sum(axis=1, keepdims=True)
    shares = issues.joint_KK / np.maximum(row_sums, 1e-12)
    return pd.DataFrame(shares, index=list(classes), columns=list(classes))
