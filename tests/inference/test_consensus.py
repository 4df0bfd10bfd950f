from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drone.evaluation.plots import save
from drone.inference import Consensus, Timeline, answers_over_time, find_consensus
from drone.inference.consensus import Agreement, running_consensus
from drone.labels import CLASSES, ClassSet
from drone.serving import ModelInfo, Preprocessing
from drone.serving.predictor import Outputs

INFO = ModelInfo(
    name="",
    version="",
    fingerprint="",
    classes=CLASSES,
    preprocessing=Preprocessing(),
    sides_px=(),
    temperature=1.0,
    unsure_below=0.6,
    known_above=0.5,
)


def probabilities(index: int, confidence: float) -> list[float]:
    rest = (1 - confidence) / 3
    return [confidence if number == index else rest for number in range(4)]


def timeline(answers: list[tuple[int, float]], known: list[float] | None = None) -> Timeline:
    """Frames at each half second, from (class index, confidence)."""
    probs_TK = np.array([probabilities(*answer) for answer in answers], np.float32)
    known_T = np.array(known if known else [0.9] * len(answers), np.float32)
    times_s = np.arange(len(answers)) / 2
    return Timeline(times_s=times_s, outputs=Outputs(probs_TK, known_T))


def consensus_of(answers: list[tuple[int, float]], known: list[float] | None = None) -> Consensus:
    return find_consensus(timeline(answers, known), INFO)


def test_repetition_does_not_make_an_answer_more_certain() -> None:
    once, often = consensus_of([(2, 0.7)]), consensus_of([(2, 0.7)] * 500)
    assert often.outputs.probs_NK[0] == pytest.approx(once.outputs.probs_NK[0], abs=1e-5)
    assert often.by_class == Agreement(num_frames=500, sure_from_s=0) and often.num_frames == 500


def test_the_consensus_is_the_normalised_geometric_mean() -> None:
    frames = timeline([(0, 0.9), (1, 0.6), (0, 0.55)])
    product = frames.outputs.probs_NK.prod(axis=0) ** (1 / 3)
    found = find_consensus(frames, INFO)
    assert found.outputs.probs_NK.shape == (1, 4)
    assert found.outputs.probs_NK[0] == pytest.approx(product / product.sum(), abs=1e-6)
    assert (found.by_class.num_frames, found.num_frames) == (2, 3)


def test_the_order_of_frames_does_not_change_the_answer() -> None:
    answers = [(0, 0.9), (1, 0.8), (2, 0.5), (0, 0.7)]
    forwards, backwards = consensus_of(answers), consensus_of(answers[::-1])
    assert forwards.outputs.probs_NK == pytest.approx(backwards.outputs.probs_NK, abs=1e-6)


def test_one_frame_cannot_rule_a_class_out() -> None:
    certain = np.array([[0, 1, 0, 0]] + [probabilities(0, 0.95)] * 19, np.float32)
    frames = Timeline(times_s=np.arange(20.0), outputs=Outputs(certain, np.ones(20, np.float32)))
    assert find_consensus(frames, INFO).outputs.probs_NK[0].argmax() == 0


def test_sure_from_the_last_change_on() -> None:
    # The second class leads until the first one has more weight, and is sure some frames later.
    found = consensus_of([(1, 0.9)] + [(0, 0.9)] * 7)
    running = running_consensus(timeline([(1, 0.9)] + [(0, 0.9)] * 7)).probs_NK
    assert found.by_class.sure_from_s is not None
    first_sure = round(found.by_class.sure_from_s * 2)
    assert (running[first_sure:, 0] >= INFO.unsure_below).all()
    assert running[first_sure - 1, 0] < INFO.unsure_below
    assert found.by_class.num_frames == 7


def test_an_unsure_answer_was_never_sure() -> None:
    assert consensus_of([(0, 0.9), (1, 0.9)]).by_class.sure_from_s is None


def test_an_answer_may_be_none_of_the_classes() -> None:
    found = consensus_of([(0, 0.9), (0, 0.3), (0, 0.3)], known=[0.6, 0.1, 0.2])
    assert found.outputs.known_N[0] == pytest.approx(0.3)
    # The first frame was a bird; with the second the mean is below the threshold.
    assert (found.by_class.num_frames, found.by_class.sure_from_s) == (2, 0.5)


def test_a_drone_may_be_sure_although_its_class_is_not() -> None:
    found = consensus_of([(1, 0.9), (2, 0.9)])
    assert found.by_class == Agreement(num_frames=1, sure_from_s=None)
    assert found.by_kind == Agreement(num_frames=2, sure_from_s=0)


def test_of_classes_of_one_role_there_are_no_kinds() -> None:
    info = replace(INFO, classes=ClassSet.of(("a", "b", "c", "d")))
    assert find_consensus(timeline([(1, 0.9)]), info).by_kind is None


@pytest.mark.parametrize(
    ("times_s", "message"),
    [([0.0], "1 times for 2 frames"), ([1.0, 0.5], "times of the frames descend")],
)
def test_a_timeline_that_does_not_fit(times_s: list[float], message: str) -> None:
    outputs = timeline([(0, 0.9)] * 2).outputs
    with pytest.raises(ValueError, match=message):
        Timeline(times_s=np.array(times_s), outputs=outputs)


def test_a_timeline_without_frames() -> None:
    with pytest.raises(ValueError, match="0 times for 0 frames"):
        Timeline(
            times_s=np.zeros(0), outputs=Outputs(np.zeros((0, 4), np.float32), np.zeros(0, "f4"))
        )


def test_the_plot_shows_frames_consensus_and_when_it_was_sure(tmp_path: Path) -> None:
    frames = timeline([(1, 0.9)] + [(0, 0.9)] * 7)
    found = find_consensus(frames, INFO)
    figure = answers_over_time(frames, found, INFO, title="a $\\broken clip.mp4")
    probabilities, known = figure.axes
    lines = {line.get_label(): line for line in probabilities.lines}
    running = running_consensus(frames)
    for index, name in enumerate(["FB", "LQC", "SQC", "WD"]):
        assert lines[name].get_ydata() == pytest.approx(running.probs_NK[:, index])
    assert known.get_xlabel() == "seconds"
    assert probabilities.get_title(loc="right") == "class sure from 1.0 s; kind sure from 1.0 s"
    assert probabilities.get_title(loc="left") == "a $\\broken clip.mp4"
    save(figure, tmp_path / "answers.png")
    with Image.open(tmp_path / "answers.png") as image:
        assert image.width > 600


def test_the_plot_of_an_answer_that_was_never_sure() -> None:
    frames = timeline([(0, 0.9), (1, 0.9)])
    figure = answers_over_time(frames, find_consensus(frames, INFO), INFO)
    assert figure.axes[0].get_title(loc="right") == "class not sure; kind not sure"
