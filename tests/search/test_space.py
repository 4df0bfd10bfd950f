"""The search space: only settings that have an effect, changed as the user says."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from drone.config import flatten, to_dict
from drone.errors import ConfigError
from drone.presets import get_preset
from drone.search import space
from drone.search.domain import Choice, Range
from drone.search.grammar import flatten_changes, parse_changes
from drone.search.space import DEFAULT, has_effect, resolve_space, suggest_params
from drone.settings_file import read_yaml
from drone.training.config import TrainConfig

BASE = get_preset("finetune")


@dataclass
class FirstValues:
    """Suggests the first value of everything, or a fixed one."""

    fixed: dict[str, Any] = field(default_factory=dict)
    suggested: list[str] = field(default_factory=list)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.suggested.append(name)
        return self.fixed.get(name, choices[0])

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
        assert isinstance(low, int) and isinstance(high, int)
        return int(self.suggest_categorical(name, [low]))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        return float(self.suggest_categorical(name, [low]))


def test_the_default_space_is_valid() -> None:
    assert DEFAULT["model.unfreeze_depth"].extremes()[0] == 0
    assert DEFAULT["model.unfreeze_depth"].extremes()[-1] == 19
    assert DEFAULT["model.head_width"] == Choice((0, 128, 256, 512, 1024))
    assert DEFAULT["augment.strength"] == Choice((0.0, 0.25, 0.5, 0.75, 1.0))
    base, searched = resolve_space(BASE, {}, "test")
    assert (base, searched) == (BASE, DEFAULT)
    for name, domain in DEFAULT.items():
        for value in domain.extremes():
            space.apply_params(BASE, {name: value}, "test")


def test_settings_without_effect_are_not_suggested() -> None:
    trial = FirstValues({"model.unfreeze_depth": 0})
    params = suggest_params(DEFAULT, BASE, trial)
    assert "optim.lr_backbone" not in params and "optim.lr_backbone" not in trial.suggested
    assert trial.suggested[0] == "model.unfreeze_depth"
    assert "optim.lr_backbone" in suggest_params(
        DEFAULT, BASE, FirstValues({"model.unfreeze_depth": 3})
    )


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("optim.lr_backbone", {"model.unfreeze_depth": 0}, False),
        ("model.head_width", {"model.head": "seed"}, False),
        ("augment.rotation_deg", {"augment.strength": 0.0}, False),
        ("augment.rotation_deg", {"augment.rotation_p": 0.0}, False),
        ("augment.rotation_deg", {}, True),
        ("optim.head_only_epochs", {"optim.schedule": "seed-cyclic"}, False),
        ("optim.weight_decay", {"model.unfreeze_depth": 0}, True),
        ("optim.resizer_lr_ratio", {}, False),
        ("pixel_budget", {}, False),
        ("pixel_budget", {"model.resizer": "residual"}, True),
        ("model.resizer_init", {"model.resizer": "residual"}, False),
        ("model.resizer_init", {"model.resizer": "stack"}, True),
    ],
)
def test_whether_a_setting_has_an_effect(name: str, settings: dict, expected: bool) -> None:
    assert has_effect(name, {**flatten(to_dict(BASE)), **settings}) == expected


def test_settings_are_suggested_after_those_that_decide_their_effect() -> None:
    arguments = ["augment.rotation_deg=5..30", "augment.rotation_p=0,0.5"]
    arguments += ["optim.resizer_lr_ratio=0.01..0.05", "model.resizer=none,stack"]
    base, searched = resolve_space(BASE, parse_changes(arguments, DEFAULT), "--vary")
    params = suggest_params(searched, base, FirstValues({"augment.strength": 0.5}))
    assert params["augment.rotation_p"] == 0 and "augment.rotation_deg" not in params
    assert params["model.resizer"] == "none" and "optim.resizer_lr_ratio" not in params


def test_settings_are_fixed_narrowed_and_added() -> None:
    arguments = [
        "augment.strength=0.5",
        "model.unfreeze_depth=0,3",
        "optim.lr_head=1e-4..1e-2",
        "augment.rotation_deg=5..30",
        "batch_size=16..64",
    ]
    changes = parse_changes(arguments, DEFAULT)
    base, searched = resolve_space(BASE, changes, "--vary")
    assert base.augment.strength == 0.5 and "augment.strength" not in searched
    assert searched["model.unfreeze_depth"] == Choice((0, 3))
    assert searched["optim.lr_head"] == Range(1e-4, 1e-2, log=True)
    assert searched["augment.rotation_deg"] == Range(5, 30, log=False)
    params = suggest_params(searched, base, FirstValues())
    assert params["batch_size"] == 16
    # Without trainable blocks their rate is not searched, though it is in the default space.
    base, searched = resolve_space(BASE, {"model.unfreeze_depth": 0}, "--vary")
    assert "optim.lr_backbone" not in searched


def test_changes_in_a_file_are_nested_or_dotted() -> None:
    content = {
        "optim": {"lr_head": {"low": 1e-4, "high": 1e-3, "log": True}, "weight_decay": 0.1},
        "model.head_width": [0, 64],
    }
    base, searched = resolve_space(BASE, flatten_changes(content), "space.yaml")
    assert searched["optim.lr_head"] == Range(1e-4, 1e-3, log=True)
    assert searched["model.head_width"] == Choice((0, 64))
    assert base.optim.weight_decay == 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optim.lr_haed=1e-3"], "there is no setting 'optim.lr_haed'. Did you mean"),
        (
            ["model.unfreeze_depth=0", "optim.lr_backbone=1e-4..1e-3"],
            "it has no effect beside",
        ),
        (
            ["model.head=seed", "model.head_width=0,64"],
            "it has no effect beside",
        ),
        (["epochs=5,10"], "epochs cannot be searched"),
        (["seed=0,1"], "seed cannot be searched"),
        (["augment.strength=0.5,2"], "augment.strength is 2.0; it must be 0 to 1"),
        (["optim.lr_head=0.1..0.01"], "low must be below high"),
        (["optim.lr_head=a..b"], "a range needs two numbers"),
        (["model.head_width=64,64"], "several different ones"),
        (["model.dropout"], "is not NAME=VALUE"),
        ([f"{name}={domain.extremes()[0]}" for name, domain in DEFAULT.items()], "every setting"),
    ],
)
def test_an_invalid_change_names_the_setting(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as failed:
        resolve_space(BASE, parse_changes(arguments, DEFAULT), "--vary")
    assert message in str(failed.value)


def test_the_first_trial_is_the_preset_moved_into_the_space() -> None:
    _, searched = resolve_space(BASE, {"model.unfreeze_depth": [0, 3, 8]}, "test")
    first = space.base_params(BASE, searched)
    assert first["model.unfreeze_depth"] == 3  # The nearest to 5.
    assert first["optim.lr_head"] == BASE.optim.lr_head
    space.check_params(first, searched, "test")
    with pytest.raises(
        ConfigError, match=r"f.yaml: model.unfreeze_depth is 5; .* domain is 0, 3, 8"
    ):
        space.check_params({"model.unfreeze_depth": 5}, searched, "f.yaml")
    with pytest.raises(ConfigError, match=r"batch_size is not searched"):
        space.check_params({"batch_size": 5}, searched, "f.yaml")


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("optim.lr_head: [1e-4, 1e-3, 1e-2]")
    _, searched = resolve_space(BASE, read_yaml(file), "test")
    assert searched["optim.lr_head"] == Choice((1e-4, 1e-3, 1e-2))
    first = space.check_params({"optim.lr_head": "1e-3"}, searched, "f.yaml")
    assert first == {"optim.lr_head": 1e-3}
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"Cannot read .*space\.yaml"):
        read_yaml(file)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.head_width", [[0], [1]], "model.head_width is [0]; it must be of type int"),
        ("optim.lr_head", ["a", 1e-3], "optim.lr_head is 'a'; it must be of type float"),
        ("optim.head_only_epochs", [1, float("inf")], "is inf; it must be a finite number"),
        ("optim.head_only_epochs", "nan", "is nan; it must be a finite number"),
        ("optim.head_only_epochs", {"low": 1, "high": "inf"}, "a range needs finite numbers"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(name: str, change: Any, message: str) -> None:
    with pytest.raises(ConfigError) as failed:
        resolve_space(BASE, {name: change}, "space.yaml")
    assert message in str(failed.value)


def test_a_trial_is_named_by_its_main_settings() -> None:
    params = {
        "model.unfreeze_depth": 5,
        "model.head_width": 512,
        "augment.strength": 0.5,
        "optim.lr_head": 0.00098,
    }
    assert space.trial_name(space.apply_params(BASE, params, "test")) == "d5 w512 a0.50 lr1e-3"
    assert space.trial_name(TrainConfig()) == "d3 w0 a0.50 lr1e-3"
