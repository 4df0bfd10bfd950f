"""Which images a label teaches most."""

import numpy as np

from drone.curation.informative import beliefs, disagreement, diverse_order, uncertainty
from drone.data.prepare.perceptual_hash import perceptual_hash
from drone.serving.predictor import Outputs
from drone.synth.drawing import draw


def outputs(*rows: tuple[float, float, float]) -> Outputs:
    """Probabilities of two classes, and the known score."""
    values = np.float32(rows)
    return Outputs(values[:, :2], values[:, 2])


def test_beliefs_weigh_classes_with_the_known_score_and_turn_at_the_threshold() -> None:
    found = beliefs(outputs((0.9, 0.1, 1.0), (0.9, 0.1, 0.3), (1, 0, 0.0)), known_above=0.3)
    np.testing.assert_allclose(found, [[0.9, 0.1, 0], [0.45, 0.05, 0.5], [0, 0, 1]], atol=1e-6)
    for threshold in (0.0, 1.0):
        found = beliefs(outputs((0.5, 0.5, 0.7)), known_above=threshold)
        assert np.isfinite(found).all() and abs(found.sum() - 1) < 1e-6


def test_doubtful_and_disputed_images_score_higher_than_clear_ones() -> None:
    clear, close, unknown = beliefs(
        outputs((0.99, 0.01, 1), (0.55, 0.45, 1), (0.99, 0.01, 0.55)), 0.5
    )
    doubts = uncertainty(np.stack([clear, close, unknown]))
    assert doubts[0] < 0.05 and doubts[1] > 0.85 and doubts[2] > 0.85
    assert disagreement(clear[None], clear[None]) == 0
    assert disagreement(clear[None], beliefs(outputs((0.01, 0.99, 1)), 0.5)) > 0.95


def test_frames_of_one_clip_come_once_and_similar_images_do_not_follow_each_other() -> None:
    scenes = [draw("Winged Drones", 160, 120, np.random.default_rng([1, n])) for n in range(5)]
    # Ten frames of the first scene, each shifted by some pixels.
    frames = [scenes[0].crop((n // 3, n % 3, 150 + n // 3, 110 + n % 3)) for n in range(10)]
    images = [*frames, *scenes[1:]]
    hashes_NB = np.stack([np.frombuffer(perceptual_hash(image), np.uint8) for image in images])
    scores_N = np.array([*np.linspace(0.5, 0.9, 10), 0.4, 0.3, 0.2, 0.1])
    order = diverse_order(scores_N, hashes_NB, 100)
    assert order[0] == 9 and sorted(order[1:]) == [10, 11, 12, 13]
    assert diverse_order(scores_N, hashes_NB, 2) == order[:2]
    assert diverse_order(scores_N[:0], hashes_NB[:0], 5) == []
    assert len(diverse_order(np.zeros(14), hashes_NB, 100)) == 5
