"""Parity: whether the exported model predicts the same as the trained one."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from drone.data.bins import PIXEL_BUDGET, batch_size_for
from drone.data.dataset import Split
from drone.errors import RunError
from drone.evaluation.batch_inference import predict_in_batches
from drone.evaluation.limits import MAX_PROBABILITY_DIFFERENCE
from drone.model.export import Served
from drone.model.mobilenet import Classifier
from drone.serving.predictor import Predictor


@dataclass(frozen=True)
class Parity:
    """Predictions of the exported model compared with those of the trained one."""

    num_images: int

    max_difference: float
    """Largest difference of a probability, over all images and classes."""

    top1_agreement: float
    """Share of images with the same most probable class."""


def measure(
    trained: Classifier,
    exported: Predictor,
    split: Split,
    positions_N: NDArray[np.int64] | None = None,
) -> Parity:
    """Compares the uncalibrated probabilities of the two models.

    Args:
        trained: The trained model, on the CPU.
        exported: The exported model.
        split: Images to compare them on.
        positions_N: Positions of the images in the split; None takes all of them.
    """
    positions = np.arange(len(split)) if positions_N is None else positions_N
    sides_N = split.sides_N[positions]
    served = Served(trained).eval()

    def load_pixels(chosen_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        return split.gather(positions[chosen_B])

    @torch.no_grad()
    def predict_trained(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        probs_NK: NDArray[np.float32] = served(torch.from_numpy(pixels_NHWC)).numpy()
        return probs_NK

    # Uncalibrated on both sides: the trained model has no temperature yet.
    trained_NK = predict_in_batches(predict_trained, sides_N, load_pixels)
    exported_NK = predict_in_batches(exported.predict_uncalibrated, sides_N, load_pixels)
    return Parity(
        num_images=len(positions),
        max_difference=float(np.abs(trained_NK - exported_NK).max()),
        top1_agreement=float((trained_NK.argmax(axis=1) == exported_NK.argmax(axis=1)).mean()),
    )


def sample_of_each_side(split: Split, num_images: int = 16) -> NDArray[np.int64]:
    """Returns the positions of the first images of each side.

    Args:
        split: Images to choose from.
        num_images: Maximum number of images of one side; fewer of large ones, so that those of a
            side fit into one batch.
    """
    sides_N = split.sides_N
    return np.concatenate(
        [
            np.flatnonzero(sides_N == side)[: batch_size_for(int(side), num_images, PIXEL_BUDGET)]
            for side in np.unique(sides_N)
        ]
    )


def check(parity: Parity, *, require_top1: bool = True) -> None:
    """Raises if the exported model's predictions differ too much.

    Args:
        parity: Result of `measure`.
        require_top1: Whether every image must have the same most probable class too. On a small
            sample of a model that has hardly been trained, two classes may tie within rounding.

    Raises:
        RunError: A probability differs by more than `MAX_PROBABILITY_DIFFERENCE`, or the most
            probable class of an image differs.
    """
    same_classes = parity.top1_agreement == 1 or not require_top1
    if parity.max_difference <= MAX_PROBABILITY_DIFFERENCE and same_classes:
        return
    raise RunError(
        f"The exported model fails the parity check on {parity.num_images} images: its "
        f"probabilities differ from the trained model's by up to {parity.max_difference:.1e} "
        f"(limit {MAX_PROBABILITY_DIFFERENCE:.0e}), and the top-1 class agrees for "
        f"{parity.top1_agreement:.2%}. The export was discarded. Install the locked packages "
        f"(make setup) and train the model again, which exports it anew."
    )
