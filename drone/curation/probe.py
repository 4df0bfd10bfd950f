"""A linear probe: logistic regression on frozen features, scored on images that were held out.

Axes: N images, T of them for training and H held out, D features, R of them after the PCA, K
classes, C values of the regularisation.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from drone.errors import DataError

NUM_FOLDS = 5
_NUM_COMPONENTS = 256

_INVERSE_REGULARISATION = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Values of C for logistic regression; the one of least out-of-fold log loss is chosen."""


@dataclass(frozen=True)
class Fold:
    """A split of the images, and their features reduced by a PCA of the training images."""

    training_T: NDArray[np.int64]
    """Positions of the training images."""

    held_out_H: NDArray[np.int64]
    """Positions of the held-out images."""

    reduced_NR: NDArray[np.float32]
    """Reduced features of all images."""

    reduction_RD: NDArray[np.float64]
    """Weights of the features in the reduced ones, which are these times the features, and a
    constant."""


@dataclass(frozen=True)
class OutOfFold:
    """Predictions, each by a probe that was not trained on the image."""

    probs_NK: NDArray[np.float64]
    inverse_regularisation: float
    """The chosen C."""

    folds: Sequence[Fold]
    """The folds, for further probes on the same features."""


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
        f"{name} has {count}" for name, count in counts.items() if count < NUM_FOLDS
    )
    if too_few:
        raise DataError(
            f"Finding label issues needs at least {NUM_FOLDS} different images of each class, and "
            f"{too_few}. Add images and prepare the data set again."
        )


def one_thread() -> threadpool_limits:
    """Returns a context in which BLAS uses one thread.

    A fit of such small matrices takes 0.02 s on one thread. On two threads that wait for each
    other it took over 1 s beside other work.
    """
    return threadpool_limits(1, user_api="blas")


def out_of_fold(
    features_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    groups_N: Sequence[str],
    seed: int = 0,
) -> OutOfFold:
    """Predicts each image by a probe that was trained on neither the image nor its group.

    Args:
        features_ND: Features of the images.
        labels_N: Class indices.
        groups_N: Group of each image; near duplicates share one and are held out together. Each
            class needs as many as there are folds; see `check_groups`.
        seed: Seed of the folds and of the PCA.
    """
    with one_thread():
        folds, probs_CNK = _by_fold(features_ND, labels_N, groups_N, seed)
    # One C for all folds: chosen per fold, their confidences would not be comparable.
    best = int(np.argmin([log_loss(labels_N, probs_NK) for probs_NK in probs_CNK]))
    return OutOfFold(probs_CNK[best], _INVERSE_REGULARISATION[best], folds)


def _by_fold(
    features_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    groups_N: Sequence[str],
    seed: int,
) -> tuple[list[Fold], NDArray[np.float64]]:
    splits = split(labels_N, groups_N, seed)
    folds = [_reduce(features_ND, training, held_out, seed) for training, held_out in splits]
    num_classes = int(labels_N.max()) + 1
    probs_CNK = np.zeros((len(_INVERSE_REGULARISATION), len(labels_N), num_classes))
    for fold in folds:
        for number, inverse_regularisation in enumerate(_INVERSE_REGULARISATION):
            probs_CNK[number, fold.held_out_H] = held_out_probabilities(
                fold, fold.training_T, labels_N, inverse_regularisation, num_classes
            )
    return folds, probs_CNK


def split(
    labels_N: NDArray[np.int64], groups_N: Sequence[str] | NDArray[np.int64], seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yields the positions for training and those held out of each fold; no group straddles."""
    # A part of a data set may have fewer images of each class than there are folds.
    num_folds = min(NUM_FOLDS, int(np.bincount(labels_N).max()))
    folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    yield from folds.split(labels_N, labels_N, groups_N)


def _reduce(
    features_ND: NDArray[np.float32],
    training_T: NDArray[np.int64],
    held_out_H: NDArray[np.int64],
    seed: int,
) -> Fold:
    num_components = min(_NUM_COMPONENTS, len(training_T) - 1, features_ND.shape[1])
    # Fitted within the fold: a PCA over all images would have seen the held-out ones.
    reduce = make_pipeline(StandardScaler(), PCA(num_components, random_state=seed))
    reduce.fit(features_ND[training_T])
    scaler, pca = reduce[0], reduce[1]
    reduction_RD = pca.components_ / scaler.scale_
    return Fold(training_T, held_out_H, reduce.transform(features_ND), reduction_RD)


def held_out_probabilities(
    fold: Fold,
    positions_T: NDArray[np.int64],
    labels_N: NDArray[np.int64],
    inverse_regularisation: float,
    num_classes: int,
) -> NDArray[np.float64]:
    """Returns probabilities for a fold's held-out images, (H, K).

    Args:
        fold: The fold.
        positions_T: Training images; of a class without any the probability is 0.
        labels_N: Class indices of all images.
        inverse_regularisation: C of the logistic regression.
        num_classes: Number of classes.
    """
    model = _fit(fold, positions_T, labels_N, inverse_regularisation)
    probs_HK = np.zeros((len(fold.held_out_H), num_classes))
    probs_HK[:, model.classes_] = model.predict_proba(fold.reduced_NR[fold.held_out_H])
    # With float32 features the sums are off by 1e-7, and log_loss would warn.
    probs_HK /= probs_HK.sum(axis=1, keepdims=True)
    return probs_HK


def _fit(
    fold: Fold,
    positions_T: NDArray[np.int64],
    labels_N: NDArray[np.int64],
    inverse_regularisation: float,
) -> LogisticRegression:
    model = LogisticRegression(C=inverse_regularisation, max_iter=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # Good enough for a ranking.
        model.fit(fold.reduced_NR[positions_T], labels_N[positions_T])
    return model


def held_out_weights(
    predictions: OutOfFold, labels_N: NDArray[np.int64], predicted_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Returns what each feature of an image weighs in the logit of a class, (N, D).

    The weights are those of the probe that predicted the image, which was not trained on it.

    Args:
        predictions: Result of `out_of_fold`.
        labels_N: Class indices that the probes were trained on.
        predicted_N: Class of each image whose logit it is.
    """
    num_features = predictions.folds[0].reduction_RD.shape[1]
    weights_ND = np.zeros((len(labels_N), num_features))
    with one_thread():
        for fold in predictions.folds:
            weights_KD = _class_weights(fold, labels_N, predictions.inverse_regularisation)
            weights_ND[fold.held_out_H] = weights_KD[predicted_N[fold.held_out_H]]
    return weights_ND


def _class_weights(
    fold: Fold, labels_N: NDArray[np.int64], inverse_regularisation: float
) -> NDArray[np.float64]:
    """Returns the weights of the features for each class, (K, D)."""
    model = _fit(fold, fold.training_T, labels_N, inverse_regularisation)
    coefficients_KR = model.coef_
    if len(model.classes_) == 2:  # scikit-learn has the weights of the log odds alone.
        coefficients_KR = np.vstack([-model.coef_, model.coef_]) / 2
    weights_KD = np.zeros((int(labels_N.max()) + 1, fold.reduction_RD.shape[1]))
    weights_KD[model.classes_] = coefficients_KR @ fold.reduction_RD
    return weights_KD
