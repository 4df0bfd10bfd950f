import pytest

from drone.config import differing, flatten, override, to_dict
from drone.errors import ConfigError
from drone.labels import CLASSES, ClassSet, nearest, suggested_role
from drone.presets import get_preset
from drone.training.config import TrainConfig


def test_settings_survive_the_way_through_a_dictionary() -> None:
    config = get_preset("seed-attempt-2")
    assert override(TrainConfig(), to_dict(config), "x") == config
    flat = flatten(to_dict(config))
    assert flat["model.unfreeze_depth"] == 3 and flat["optim.lr_head"] == 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "my.yaml: there is no setting 'epoch'. Did you mean 'epochs'"),
        ({"model": {"dropuot": 0.1}}, "my.yaml: model: there is no setting 'dropuot'"),
        ({"model": 3}, "model is a group of settings"),
        ({"epochs": "many"}, "epochs is 'many'; it must be of type int"),
        ({"epochs": True}, "epochs is True"),
        ({"precision": "fp8"}, "precision is 'fp8'; allowed are auto, fp32, bf16"),
        ({"epochs": -1}, "my.yaml: epochs is -1"),
        ({"optim": {"lr_head": "fast"}}, "lr_head is 'fast'"),
    ],
)
def test_a_wrong_setting_is_named(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(TrainConfig(), values, "my.yaml")


def test_numbers_as_yaml_gives_them() -> None:
    found = override(TrainConfig(), {"optim": {"lr_head": "1e-3", "head_only_epochs": 2}}, "x")
    assert found.optim.lr_head == 1e-3 and found.optim.head_only_epochs == 2.0


def test_class_names() -> None:
    for folder in ("flying_birds", "FlyingBirds", "FLYING BIRD", "flying-birds"):
        assert CLASSES.match(folder) == CLASSES[0]
    assert CLASSES.match("birds") is None
    gulls = ClassSet.of(("Gulls", "Drones"), aliases=[["Lari", "sea birds"], []])
    assert [gulls.match(name) for name in ("lari", "SeaBird", "gull")] == ["Gulls"] * 3
    both = ClassSet.of(("Gulls", "Drones"), aliases=[["flyers"], ["Flyer"]])
    assert both.match("FLYERS") is None and both.match("flyers") == "Gulls"


def test_roles_by_names() -> None:
    assert CLASSES.roles == ("bird", "drone", "drone", "drone")
    names = ("Seagulls", "UAVs", "FlyingBirds", "bird-like drones", "helicopters", "747", "🛸")
    roles = ["bird", "drone", "bird", "drone", "other", "other", "other"]
    assert [suggested_role(name) for name in names] == roles
    assert nearest("finetun", ["finetune", "frozen"]) == "finetune"


def test_what_differs_from_the_defaults() -> None:
    values = {"a": 1, "group": {"b": 2, "c": 3}, "same": {"d": 4}}
    defaults = {"a": 1, "group": {"b": 2, "c": 0}, "same": {"d": 4}}
    assert differing(values, defaults) == {"group": {"c": 3}}
