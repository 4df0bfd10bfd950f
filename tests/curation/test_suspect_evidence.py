"""What the probe's suggestions rest on: its weights, and their maps over the images."""

import numpy as np
import pytest
import torch
from torchvision.models import mobilenet_v2

from drone.curation import frozen_features, probe
from drone.data.dataset import Dataset
from drone.evaluation.batch_inference import no_progress
from drone.model.weights import Weights, load


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(mobilenet_v2().state_dict(), file)
    return load(str(file), may_be_random=False)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_weights_give_the_log_odds_of_the_probe(num_classes: int) -> None:
    rng = np.random.default_rng(0)
    labels_N = np.repeat(np.arange(num_classes), 30)
    features_ND = rng.normal(0, 1, (len(labels_N), 40)).astype(np.float32)
    features_ND[:, :num_classes] += 2 * np.eye(num_classes)[labels_N]
    groups = [str(number) for number in range(len(labels_N))]
    predictions = probe.out_of_fold(features_ND, labels_N, groups)
    first, second = (
        probe.held_out_weights(predictions, labels_N, np.full(len(labels_N), index))
        for index in (0, 1)
    )
    probs_NK = predictions.probs_NK
    log_odds_N = np.log(probs_NK[:, 0] / probs_NK[:, 1])
    computed_N = ((first - second) * features_ND).sum(axis=1)
    for fold in predictions.folds:
        # Equal up to the constant of the fold.
        offsets_H = (log_odds_N - computed_N)[fold.held_out_H]
        assert np.ptp(log_odds_N[fold.held_out_H]) > 1 and np.ptp(offsets_H) < 1e-3


def test_a_map_sums_to_the_weighted_features(dataset: Dataset, backbone: Weights) -> None:
    features = frozen_features.compute(dataset, backbone, no_progress)
    positions = np.array([5, 0, 9])
    weights_PD = np.random.default_rng(0).normal(size=(3, features.features_ND.shape[1]))
    pixel_rows = features.rows["pixel_row"].to_numpy(np.int64)[positions]
    maps = list(
        frozen_features.evidence_maps(dataset, pixel_rows, weights_PD, backbone, no_progress)
    )
    assert [map_HW.shape for map_HW in maps] == [(2, 2)] * 3
    sums = [float(map_HW.sum()) for map_HW in maps]
    expected = (weights_PD * features.features_ND[positions]).sum(axis=1)
    assert sums == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-6)
