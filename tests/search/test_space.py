"""What is searched: only what has an effect, and only what was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from drone.config import flatten, to_dict
from drone.errors import ConfigError
from drone.presets import get
from drone.search import space
from drone.search.space import DEFAULT, Choice, Range, is_read, resolve, suggest
from drone.training.config import TrainConfig
from ray_jobs.train import read_yaml

BASE = get("finetune")


@dataclass
class Suggests:
    """Takes the first value of everything, or those given."""

    given: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.asked.append(name)
        return self.given.get(name, choices[0])

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
        assert isinstance(low, int) and isinstance(high, int)
        return int(self.suggest_categorical(name, [low]))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        return float(self.suggest_categorical(name, [low]))


def test_the_default_space_holds_what_it_promises() -> None:
    assert DEFAULT["model.unfreeze_depth"].examples()[0] == 0
    assert DEFAULT["model.unfreeze_depth"].examples()[-1] == 19
    assert DEFAULT["model.head_width"] == Choice((0, 128, 256, 512, 1024))
    assert DEFAULT["augment.strength"] == Choice((0.0, 0.25, 0.5, 0.75, 1.0))
    base, searched = resolve(BASE, {}, "test")
    assert (base, searched) == (BASE, DEFAULT)
    for name, domain in DEFAULT.items():
        for value in domain.examples():
            space.configure(BASE, {name: value}, "test")


def test_settings_without_effect_are_not_suggested() -> None:
    trial = Suggests({"model.unfreeze_depth": 0})
    chosen = suggest(DEFAULT, BASE, trial)
    assert "optim.lr_backbone" not in chosen and "optim.lr_backbone" not in trial.asked
    assert trial.asked[0] == "model.unfreeze_depth"
    assert "optim.lr_backbone" in suggest(DEFAULT, BASE, Suggests({"model.unfreeze_depth": 3}))


@pytest.mark.parametrize(
    ("name", "settings", "read"),
    [
        ("optim.lr_backbone", {"model.unfreeze_depth": 0}, False),
        ("model.head_width", {"model.head": "seed"}, False),
        ("augment.rotation_deg", {"augment.strength": 0.0}, False),
        ("augment.rotation_deg", {"augment.rotation_p": 0.0}, False),
        ("augment.rotation_deg", {}, True),
        ("optim.head_epochs", {"optim.schedule": "seed-cyclic"}, False),
        ("optim.weight_decay", {"model.unfreeze_depth": 0}, True),
        ("optim.resizer_share", {}, False),
        ("pixel_budget", {}, False),
        ("pixel_budget", {"model.resizer": "residual"}, True),
        ("model.resizer_start", {"model.resizer": "residual"}, False),
        ("model.resizer_start", {"model.resizer": "stack"}, True),
    ],
)
def test_what_has_an_effect(name: str, settings: dict, read: bool) -> None:
    assert is_read(name, {**flatten(to_dict(BASE)), **settings}) == read


def test_what_others_depend_on_is_suggested_before_them() -> None:
    words = ["augment.rotation_deg=5..30", "augment.rotation_p=0,0.5"]
    words += ["optim.resizer_share=0.01..0.05", "model.resizer=none,stack"]
    base, searched = resolve(BASE, space.parse(words), "--vary")
    chosen = suggest(searched, base, Suggests({"augment.strength": 0.5}))
    assert chosen["augment.rotation_p"] == 0 and "augment.rotation_deg" not in chosen
    assert chosen["model.resizer"] == "none" and "optim.resizer_share" not in chosen


def test_fixing_narrowing_and_adding() -> None:
    changes = space.parse(
        [
            "augment.strength=0.5",
            "model.unfreeze_depth=0,3",
            "optim.lr_head=1e-4..1e-2",
            "augment.rotation_deg=5..30",
            "batch_size=16..64",
        ]
    )
    base, searched = resolve(BASE, changes, "--vary")
    assert base.augment.strength == 0.5 and "augment.strength" not in searched
    assert searched["model.unfreeze_depth"] == Choice((0, 3))
    assert searched["optim.lr_head"] == Range(1e-4, 1e-2, log=True)
    assert searched["augment.rotation_deg"] == Range(5, 30, log=False)
    chosen = suggest(searched, base, Suggests())
    assert chosen["batch_size"] == 16
    # Without learning blocks their rate is not searched, though it is in the default space.
    base, searched = resolve(BASE, {"model.unfreeze_depth": 0}, "--vary")
    assert "optim.lr_backbone" not in searched


def test_changes_from_a_file_stand_alone_or_in_groups() -> None:
    content = {
        "optim": {"lr_head": {"low": 1e-4, "high": 1e-3, "log": True}, "weight_decay": 0.1},
        "model.head_width": [0, 64],
    }
    base, searched = resolve(BASE, space.flat_changes(content), "space.yaml")
    assert searched["optim.lr_head"] == Range(1e-4, 1e-3, log=True)
    assert searched["model.head_width"] == Choice((0, 64))
    assert base.optim.weight_decay == 0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.lr_haed=1e-3"], "there is no setting 'optim.lr_haed'. Did you mean"),
        (["model.unfreeze_depth=0", "optim.lr_backbone=1e-4..1e-3"], "no trial would read it"),
        (["model.head=seed", "model.head_width=0,64"], "no trial would read it"),
        (["epochs=5,10"], "epochs cannot be searched"),
        (["seed=0,1"], "seed cannot be searched"),
        (["augment.strength=0.5,2"], "augment.strength is 2.0; it must be 0 to 1"),
        (["optim.lr_head=0.1..0.01"], "low must be below high"),
        (["optim.lr_head=a..b"], "from one number to another"),
        (["model.head_width=64,64"], "several different ones"),
        (["model.dropout"], "write NAME=VALUE"),
        ([f"{name}={domain.examples()[0]}" for name, domain in DEFAULT.items()], "every setting"),
    ],
)
def test_wrong_changes_name_the_setting(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as failed:
        resolve(BASE, space.parse(words), "--vary")
    assert message in str(failed.value)


def test_a_preset_is_the_first_trial_as_far_as_the_space_allows() -> None:
    _, searched = resolve(BASE, {"model.unfreeze_depth": [0, 3, 8]}, "test")
    first = space.settings_of(BASE, searched)
    assert first["model.unfreeze_depth"] == 3  # The nearest to 5.
    assert first["optim.lr_head"] == BASE.optim.lr_head
    space.check_trial(first, searched, "test")
    with pytest.raises(ConfigError, match=r"f.yaml: model.unfreeze_depth is 5; .* in 0, 3, 8"):
        space.check_trial({"model.unfreeze_depth": 5}, searched, "f.yaml")
    with pytest.raises(ConfigError, match=r"batch_size is not searched"):
        space.check_trial({"batch_size": 5}, searched, "f.yaml")


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("optim.lr_head: [1e-4, 1e-3, 1e-2]")
    _, searched = resolve(BASE, read_yaml(file), "test")
    assert searched["optim.lr_head"] == Choice((1e-4, 1e-3, 1e-2))
    first = space.check_trial({"optim.lr_head": "1e-3"}, searched, "f.yaml")
    assert first == {"optim.lr_head": 1e-3}
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"space\.yaml cannot be read"):
        read_yaml(file)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.head_width", [[0], [1]], "model.head_width is [0]; a value of type int"),
        ("optim.lr_head", ["a", 1e-3], "optim.lr_head is 'a'; a value of type float"),
        ("optim.head_epochs", [1, float("inf")], "is inf; a finite number"),
        ("optim.head_epochs", "nan", "is nan; a finite number"),
        ("optim.head_epochs", {"low": 1, "high": "inf"}, "between finite numbers"),
    ],
)
def test_what_is_no_value_of_a_setting_is_refused(name: str, change: Any, message: str) -> None:
    with pytest.raises(ConfigError) as failed:
        resolve(BASE, {name: change}, "space.yaml")
    assert message in str(failed.value)


def test_a_trial_has_a_name_that_can_be_read() -> None:
    params = {
        "model.unfreeze_depth": 5,
        "model.head_width": 512,
        "augment.strength": 0.5,
        "optim.lr_head": 0.00098,
    }
    assert space.trial_name(space.configure(BASE, params, "test")) == "d5 w512 a0.50 lr1e-3"
    assert space.trial_name(TrainConfig()) == "d3 w0 a0.50 lr1e-3"
