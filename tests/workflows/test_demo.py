"""The demonstration: what it trains, and that it says so. The whole of it runs by `make demo`."""

from pathlib import Path

import pytest

from drone.errors import ConfigError, WeightsError
from drone.model import weights
from drone.presets import get_preset
from drone.workflows import demo
from drone.workflows.display import SilentDisplay
from drone.workflows.requests import DemoRequest


class Recorder(SilentDisplay):
    """Remembers the warnings."""

    def __init__(self) -> None:
        self.warnings = ""

    def warn(self, *lines: str) -> None:
        self.warnings += "\n".join(lines)


def no_download(may_be_random: bool) -> bytes:
    raise WeightsError("The ImageNet weights could not be downloaded.")


@pytest.mark.parametrize("source", ["none", "imagenet"])
def test_without_imagenet_weights_it_trains_the_preset_scratch_and_says_so(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_download", no_download)
    recorder = Recorder()
    used, recipe = demo.choose_recipe(DemoRequest(weights=source), recorder)
    assert used == "none" and recipe.presets == ("scratch",)
    assert "RANDOM WEIGHTS" in recorder.warnings and "made up and easy" in recorder.warnings
    assert "says nothing about real drones and birds" in recorder.warnings
    assert ("could not be downloaded" in recorder.warnings) == (source == "imagenet")


def test_the_preset_scratch_trains_every_layer_as_long_as_the_demonstration_does() -> None:
    config = get_preset("scratch")
    assert config.model.cut == 0 and config.model.batchnorm == "trainable"
    assert config.optim.head_only_epochs == 0 and config.epochs == demo.SCRATCH.epochs


def test_weights_in_a_file_go_the_usual_way(real_weights: Path) -> None:
    recorder = Recorder()
    used, recipe = demo.choose_recipe(DemoRequest(weights=str(real_weights)), recorder)
    assert used == str(real_weights) and recipe.presets == ("frozen", "finetune")
    assert not recorder.warnings


def test_a_file_that_is_not_there_is_not_replaced_by_random_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        demo.choose_recipe(DemoRequest(weights=str(tmp_path / "missing.pth")))


def test_own_images_from_random_weights_are_warned_of() -> None:
    recorder = Recorder()
    demo.choose_recipe(DemoRequest(weights="none", raw=Path("images")), recorder)
    assert "expect low scores on photos" in recorder.warnings
    assert "made up" not in recorder.warnings


@pytest.mark.parametrize("flag", ["images-per-class", "epochs", "seed"])
def test_numbers_out_of_range_are_named(flag: str) -> None:
    with pytest.raises(ConfigError, match=f"--{flag} is -1; it must be at least"):
        DemoRequest(weights="none", **{flag.replace("-", "_"): -1})
