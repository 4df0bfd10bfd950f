import hashlib
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch.distributed as distributed
from torch import nn
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

from drone.errors import ConfigError, WeightsError
from drone.model import mobilenet, weights
from drone.model.batchnorm import (
    GlobalBatchNorm2d,
    estimate_statistics,
    has_statistics,
)
from drone.model.config import NUM_BLOCKS, ModelConfig
from drone.model.head import KeyedDropout
from tests.job_process import run_two_ranks


def test_parameter_counts_equal_the_originals() -> None:
    counts = {
        depth: mobilenet.build(
            ModelConfig(unfreeze_depth=depth, head="seed"), 4, 0, None
        ).parameter_counts()
        for depth in (0, 3)
    }
    assert counts[3].total == counts[0].total == 3_409_156
    assert counts[3].trainable == 2_391_364


@pytest.mark.parametrize("depth", range(NUM_BLOCKS + 1))
def test_trainable_blocks_at_each_depth(depth: int) -> None:
    model = mobilenet.build(ModelConfig(unfreeze_depth=depth), 4, 0, None)
    for number, block in enumerate(model.features):
        trainable = {parameter.requires_grad for parameter in block.parameters()}
        assert trainable == {number >= NUM_BLOCKS - depth}
    assert all(parameter.requires_grad for parameter in model.head.parameters())


@pytest.mark.parametrize(
    ("batchnorm", "frozen_updates", "trainable_updates"),
    [("stored", False, False), ("trainable", False, True), ("drift", True, True)],
)
def test_which_statistics_are_updated(
    batchnorm: str, frozen_updates: bool, trainable_updates: bool
) -> None:
    model = mobilenet.build(ModelConfig(unfreeze_depth=3, batchnorm=batchnorm), 4, 0, None)
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.train()
    model(torch.randn(4, 3, 64, 64))
    updated = {
        int(name.split(".")[1])
        for name, value in model.named_buffers()
        if "running_mean" in name and not torch.equal(value, before[name])
    }
    assert any(number < 16 for number in updated) is frozen_updates
    assert any(number >= 16 for number in updated) is trainable_updates


def test_heads() -> None:
    images = torch.randn(3, 3, 64, 64)
    linear = mobilenet.build(ModelConfig(head_width=0), 4, 0, None).eval()
    assert [type(layer) for layer in linear.head] == [KeyedDropout, nn.Linear]
    assert linear(images).shape == (3, 4)
    seed = mobilenet.build(ModelConfig(head="seed"), 4, 0, None).eval()
    torch.testing.assert_close(seed(images).exp().sum(dim=1), torch.ones(3))


def test_the_same_seed_gives_the_same_model() -> None:
    first, same, other = (mobilenet.build(ModelConfig(), 4, seed, None) for seed in (1, 1, 2))
    assert torch.equal(first.head[1].weight, same.head[1].weight)
    assert not torch.equal(first.head[1].weight, other.head[1].weight)


def test_dropout_is_a_function_of_the_image() -> None:
    layer = KeyedDropout(0.5, stream=100)
    features, keys = torch.ones(6, 1000), torch.arange(6)
    layer.set_key(seed=1, epoch=2, keys_N=keys)
    dropped = layer(features)
    assert dropped.mean().item() == pytest.approx(1, abs=0.1)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    layer.set_key(seed=1, epoch=2, keys_N=keys[3:5])
    assert torch.equal(layer(features[3:5]), dropped[3:5])
    layer.set_key(seed=1, epoch=3, keys_N=keys)
    assert not torch.equal(layer(features), dropped)
    assert torch.equal(layer.eval()(features), features)


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ConfigError, match=r"model.unfreeze_depth is 20; it must be 0 to 19"):
        ModelConfig(unfreeze_depth=20)
    with pytest.raises(ConfigError, match=r"model.dropout is 1"):
        ModelConfig(dropout=1)


class TestWeights:
    def test_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "w.pth"
        state = mobilenet_v2().state_dict()
        torch.save(state, file)
        loaded = weights.load(str(file))
        assert loaded.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert loaded.pretrained == "w.pth"
        model = mobilenet.build(ModelConfig(), 4, 0, loaded.state())
        assert torch.equal(model.features[0][0].weight, state["features.0.0.weight"])

    def test_a_missing_file(self) -> None:
        with pytest.raises(WeightsError, match=r"nowhere.pth cannot be read.*imagenet"):
            weights.load("nowhere.pth")

    def test_a_file_that_would_run_code(self, tmp_path: Path) -> None:
        file = tmp_path / "evil.pth"
        torch.save({"features.0.0.weight": Path}, file)
        with pytest.raises(WeightsError, match="evil.pth cannot be loaded as a file of weights"):
            weights.load(str(file))

    def test_weights_of_another_network(self, tmp_path: Path) -> None:
        file = tmp_path / "other.pth"
        torch.save({"layer.weight": torch.zeros(3)}, file)
        message = (
            r"other.pth: 260 names \(features.0.0.weight, .*\) of torchvision's mobilenet_v2 are "
            r"missing, and 1 names \(layer.weight\) are unexpected.*--weights imagenet"
        )
        with pytest.raises(WeightsError, match=message):
            weights.load(str(file))
        torch.save(mobilenet_v2(width_mult=0.5).state_dict(), file)
        message = r"features.0.0.weight has the shape \(16, 3, 3, 3\) instead of \(32, 3, 3, 3\)"
        with pytest.raises(WeightsError, match=message):
            weights.load(str(file))

    def test_names_with_a_prefix_and_names_too_many(self, tmp_path: Path) -> None:
        file, state = tmp_path / "wrapped.pth", mobilenet_v2().state_dict()
        torch.save({f"module.{name}": value for name, value in state.items()}, file)
        message = r"260 names .* are missing, and 314 names \(module.features.0.0.weight, .*\.\)"
        with pytest.raises(WeightsError, match=message):
            weights.load(str(file))
        torch.save({**state, "features.19.weight": torch.zeros(1)}, file)
        with pytest.raises(WeightsError, match=r"0 names .* 1 names \(features.19.weight\)"):
            weights.load(str(file))
        # What older versions of torch saved, and other classes than ours.
        older = {name: value for name, value in state.items() if "num_batches" not in name}
        torch.save({**older, "classifier.1.weight": torch.zeros(7, 1280)}, file)
        mobilenet.build(ModelConfig(), 4, 0, weights.load(str(file)).state())

    def test_a_failed_download_names_three_alternatives(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unreachable(*_: object, **__: object) -> None:
            raise URLError("no network")

        monkeypatch.setattr(MobileNet_V2_Weights, "get_state_dict", unreachable)
        with pytest.raises(WeightsError) as failed:
            weights.load("imagenet")
        for text in ("no network", "--weights FILE", "DRONE_WEIGHTS=FILE", "--weights none"):
            assert text in str(failed.value)

    @pytest.mark.real
    def test_real_weights(self, real_weights: Path) -> None:
        loaded = weights.load(str(real_weights))
        assert loaded.sha256.startswith("fcb88ca09413")
        model = mobilenet.build(ModelConfig(), 4, 0, loaded.state())
        assert has_statistics(model.features)


def _normalise_on_two(rank: int, folder: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    inputs = torch.load(folder / "inputs.pt")
    layer = nn.Sequential(GlobalBatchNorm2d(5))
    images = inputs["images"][rank::2].clone().requires_grad_()
    output = layer(images)
    (output * inputs["slopes"][rank::2]).sum().backward()
    result = {
        "output": output.detach(),
        "gradient": images.grad,
        "mean": layer[0].running_mean,
        "variance": layer[0].running_var,
    }
    torch.save(result, folder / f"result_{rank}.pt")
    distributed.destroy_process_group()


def test_batchnorm_over_two_ranks_is_that_over_the_whole_batch(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, 5, 4, 4, generator=generator) * 30 + 100  # 4 and 3 images.
    slopes = torch.randn(7, 5, 4, 4, generator=generator)
    torch.save({"images": images, "slopes": slopes}, tmp_path / "inputs.pt")
    run_two_ranks(_normalise_on_two, (tmp_path,))
    plain = nn.BatchNorm2d(5)
    whole = images.clone().requires_grad_()
    expected = plain(whole)
    (expected * slopes).sum().backward()
    for rank in range(2):
        result = torch.load(tmp_path / f"result_{rank}.pt")
        torch.testing.assert_close(result["output"], expected[rank::2].detach(), atol=1e-4, rtol=0)
        torch.testing.assert_close(result["gradient"], whole.grad[rank::2], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(result["mean"], plain.running_mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(result["variance"], plain.running_var, atol=1e-3, rtol=1e-4)


def test_statistics_of_random_weights_are_estimated_from_data() -> None:
    model = mobilenet.build(ModelConfig(unfreeze_depth=0, batchnorm="drift"), 4, 0, None).eval()
    images = torch.randn(8, 3, 64, 64)
    assert not has_statistics(model.features)
    assert model.features(images).std() < 1e-2  # Nothing is left of the image.
    estimate_statistics(model.features, [images])
    assert has_statistics(model.features)
    assert model.features(images).std() > 0.1
    layer = model.features[0][1]
    assert isinstance(layer, GlobalBatchNorm2d) and layer.momentum == 0.1 and not layer.training
