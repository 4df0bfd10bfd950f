"""One answer for a clip, or for an object that boxes track, from the answers for its frames."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drone.serving.predictor import ModelInfo, Outputs
from drone.serving.roles import confidences, decide, role_probabilities

_MIN_PROBABILITY = 1e-6
"""Smaller probabilities count as this one, so that no single frame can rule a class out."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """What a model says of T frames, in the order of their times."""

    times_s: NDArray[np.float64]
    """Times of the frames in seconds, (T,), ascending."""

    outputs: Outputs
    """Probabilities, (T, K), and known scores, (T,)."""

    def __post_init__(self) -> None:
        num_times, num_frames = len(self.times_s), len(self.outputs.probs_NK)
        if num_times != num_frames or num_times == 0:
            raise ValueError(f"There are {num_times} times for {num_frames} frames.")
        if (np.diff(self.times_s) < 0).any():
            raise ValueError("The times of the frames descend; sort the frames by time.")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far the frames agree with the answer for all of them."""

    num_frames: int
    """Number of frames whose own answer is this one."""

    sure_from_s: float | None
    """Time in seconds from which the answer was sure: the consensus of all frames until then, and
    until any later time, is this answer and not unsure. None if it is unsure at the end."""


@dataclass(frozen=True, kw_only=True)
class Consensus:
    """The answer for all frames together."""

    outputs: Outputs
    """Its probabilities, (1, K), and known score, (1,), as those of one image."""

    num_frames: int
    """Number of frames."""

    by_class: Agreement
    """On the class, or on none of the classes."""

    by_kind: Agreement | None
    """On drone, bird or other, or on none of the classes; None if all classes have one role. It is
    sure of many a distant drone whose class is not."""


def find_consensus(timeline: Timeline, info: ModelInfo) -> Consensus:
    """Returns the answer for all frames of a clip or of a track.

    Args:
        timeline: What the model says of the frames.
        info: The model's description, for its thresholds.
    """
    frames, running = timeline.outputs, running_consensus(timeline)
    by_kind = None
    if len(info.classes.present_roles) > 1:
        kinds = _kinds(frames, info), _kinds(running, info)
        by_kind = _agreement(timeline.times_s, *kinds, info, lambda probs_NR: probs_NR.argmax(1))
    return Consensus(
        outputs=Outputs(running.probs_NK[-1:], running.known_N[-1:]),
        num_frames=len(timeline.times_s),
        by_class=_agreement(
            timeline.times_s, frames, running, info, lambda probs_NK: decide(probs_NK, info.classes)
        ),
        by_kind=by_kind,
    )


def running_consensus(timeline: Timeline) -> Outputs:
    """Returns the consensus of the frames until each time: (T, K) probabilities, (T,) known scores.

    Probabilities are combined to their normalised geometric mean, the softmax of the mean of their
    logarithms. Unlike their product, which would take frames for independent witnesses, it does not
    become more certain by repetition: frames of one clip are mostly right or mostly wrong together
    (docs/clips.md has the figures). The known score is the mean.
    """
    counts_T = np.arange(1, len(timeline.times_s) + 1)
    probs_TK = timeline.outputs.probs_NK.astype(np.float64)
    logs_TK = np.log(np.maximum(probs_TK, _MIN_PROBABILITY)).cumsum(axis=0) / counts_T[:, None]
    powers_TK = np.exp(logs_TK - logs_TK.max(axis=1, keepdims=True))
    mean_TK = powers_TK / powers_TK.sum(axis=1, keepdims=True)
    known_T = timeline.outputs.known_N.astype(np.float64).cumsum() / counts_T
    return Outputs(mean_TK.astype(np.float32), known_T.astype(np.float32))


_NONE = -1
"""Stands for none of the classes among class indices."""


def _kinds(outputs: Outputs, info: ModelInfo) -> Outputs:
    """Returns outputs with roles for classes."""
    probs_NR = role_probabilities(outputs.probs_NK, info.classes)
    return Outputs(probs_NR.astype(np.float32), outputs.known_N)


def _agreement(
    times_s: NDArray[np.float64],
    frames: Outputs,
    running: Outputs,
    info: ModelInfo,
    choose: Callable[[NDArray[np.float32]], NDArray[np.int64]],
) -> Agreement:
    own_T = _unless_none(choose(frames.probs_NK), frames, info)
    chosen_T = choose(running.probs_NK)
    answers_T = _unless_none(chosen_T, running, info)
    confidence_T = confidences(running.probs_NK, chosen_T)
    # Probabilities of classes say nothing of what is none of them.
    sure_T = (confidence_T >= info.unsure_below) | (answers_T == _NONE)
    last_doubts = np.flatnonzero(~sure_T | (answers_T != answers_T[-1]))
    first_sure = int(last_doubts[-1]) + 1 if len(last_doubts) else 0
    return Agreement(
        num_frames=int((own_T == answers_T[-1]).sum()),
        sure_from_s=float(times_s[first_sure]) if first_sure < len(times_s) else None,
    )


def _unless_none(
    indices_N: NDArray[np.int64], outputs: Outputs, info: ModelInfo
) -> NDArray[np.int64]:
    """Returns indices, and _NONE where an image is none of the classes."""
    return np.where(outputs.known_N >= info.known_above, indices_N, _NONE)
