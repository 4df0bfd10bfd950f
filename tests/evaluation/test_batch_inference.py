import numpy as np

from drone.evaluation.batch_inference import predict_in_batches


def test_predictions_are_in_the_order_of_the_images() -> None:
    sides_N = np.random.default_rng(0).permutation(np.repeat([224, 448, 1792], [20, 60, 20]))
    batch_sides: list[set[int]] = []

    def load_pixels(positions_B: np.ndarray) -> np.ndarray:
        batch_sides.append(set(sides_N[positions_B]))
        return positions_B

    def predict(positions_B: np.ndarray) -> np.ndarray:
        return np.stack([positions_B, sides_N[positions_B]], axis=1).astype(np.float32)

    predictions = predict_in_batches(predict, sides_N, load_pixels)
    assert np.array_equal(predictions, np.stack([np.arange(100), sides_N], axis=1))
    assert all(len(sides) == 1 for sides in batch_sides)
