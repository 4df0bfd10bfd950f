"""The search space: which settings a search varies by default, and how the user changes that.

To add a search setting, add its domain to DEFAULT. A setting without effect beside the others of a
trial (a learning rate of the backbone when every block is frozen) is not suggested for that trial:
`has_effect` says when.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Protocol

from drone.config import coerce, flatten, override, setting_type, to_dict
from drone.errors import ConfigError
from drone.search.domain import Choice, Domain, Range, Space
from drone.search.grammar import Changes
from drone.training.config import TrainConfig

DEFAULT: Space = {
    # The head only, the last convolution too, then whole stages of one resolution and width; 3 is
    # the original's.
    "model.unfreeze_depth": Choice((0, 1, 2, 3, 5, 8, 12, 19)),
    "model.head_width": Choice((0, 128, 256, 512, 1024)),
    # Levels instead of a range, so that trials share cached activations.
    "augment.strength": Choice((0.0, 0.25, 0.5, 0.75, 1.0)),
    "optim.lr_head": Range(3e-4, 1e-2, log=True),
    "optim.lr_backbone": Range(2e-5, 1e-3, log=True),
    "optim.weight_decay": Range(1e-3, 0.3, log=True),
    "model.dropout": Range(0.0, 0.5),
    "optim.label_smoothing": Range(0.0, 0.2),
    "optim.ema_decay": Choice((0.0, 0.9, 0.97, 0.99)),
}
"""The default search space."""

_NOT_SEARCHABLE = {
    "preset": "it is only a name",
    "seed": "a seed is not something to select (--seed sets it)",
    "epochs": "trials can only be compared after the same number of epochs (--epochs sets it)",
    "checkpoint_interval_s": "it does not change the result",
    "compile": "it does not change the result",
    "stop_epoch": "a study finds the best epoch of every trial",
    "train_on": "trials are scored on images that they are not trained on (see --final-on)",
    "calibration.temperature": "a study fits it on held-out images",
    "calibration.unsure_below": "a study chooses it on held-out images",
    "best_epoch_by": "it defines the score of a trial",
}

_CONTROLS = (
    "model.unfreeze_depth",
    "model.head",
    "model.resizer",
    "augment.strength",
    "optim.schedule",
)
"""Settings that decide whether others have an effect."""

_PROBABILITY_OF = {
    "augment.brightness": "augment.brightness_p",
    "augment.contrast": "augment.contrast_p",
    "augment.rotation_deg": "augment.rotation_p",
    "augment.shift": "augment.shift_p",
    "augment.cutout_min": "augment.cutout_p",
    "augment.cutout_max": "augment.cutout_p",
    "augment.elastic": "augment.elastic_p",
}


def has_effect(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a setting has an effect beside these others, given by dotted name."""
    if not settings["model.unfreeze_depth"] and name in (
        "optim.lr_backbone",
        "optim.head_only_epochs",
    ):
        return False
    if name in ("optim.head_only_epochs", "optim.warmup_epochs"):
        return bool(settings["optim.schedule"] == "cosine")
    if name == "model.head_width":
        return bool(settings["model.head"] == "mlp")
    if name in ("optim.resizer_lr_ratio", "pixel_budget"):
        return bool(settings["model.resizer"] != "none")
    if name == "model.resizer_init":
        return bool(settings["model.resizer"] == "stack")
    if name.startswith("augment.") and name != "augment.strength":
        probability = _PROBABILITY_OF.get(name)
        never = probability is not None and settings[probability] == 0
        return bool(settings["augment.strength"] > 0) and not never
    return True


class Suggester(Protocol):
    """Chooses values: an Optuna trial."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Chooses one of the choices."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
        """Chooses a whole number."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        """Chooses a number."""


def suggest_params(space: Space, base: TrainConfig, trial: Suggester) -> dict[str, Any]:
    """Returns a trial's parameters by dotted name; settings without effect are left out."""
    settings = flatten(to_dict(base))
    # Settings chosen so far decide which others have an effect, so the order matters.
    params: dict[str, Any] = {}
    for name in _suggestion_order(space):
        if has_effect(name, {**settings, **params}):
            params[name] = _suggest_value(trial, name, space[name], settings[name])
    return params


def _suggest_value(trial: Suggester, name: str, domain: Domain, default: Any) -> Any:
    if isinstance(domain, Choice):
        return trial.suggest_categorical(name, domain.values)
    if isinstance(default, int):
        return trial.suggest_int(name, int(domain.low), int(domain.high), log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, log=domain.log)


def _suggestion_order(space: Space) -> list[str]:
    """Returns the names in order of suggestion: a setting after those that decide its effect."""
    probabilities, names = _PROBABILITY_OF.values(), list(space)
    return sorted(
        space,
        key=lambda name: (name not in _CONTROLS, name not in probabilities, names.index(name)),
    )


def apply_params(base: TrainConfig, params: Mapping[str, Any], source: str) -> TrainConfig:
    """Returns a configuration with some settings replaced, given by dotted name.

    Raises:
        ConfigError: A setting is wrong; the message starts with `source`.
    """
    nested: dict[str, Any] = {}
    for name, value in params.items():
        *groups, last = name.split(".")
        target = nested
        for group in groups:
            target = target.setdefault(group, {})
        target[last] = value
    return override(base, nested, source)


def base_params(base: TrainConfig, space: Space) -> dict[str, Any]:
    """Returns the base's values of the searched settings, moved into their domains."""
    settings = flatten(to_dict(base))
    # The user may have narrowed a domain so that it leaves out the value of the preset.
    return {name: domain.closest(settings[name]) for name, domain in space.items()}


def check_params(params: Mapping[str, Any], space: Space, source: str) -> dict[str, Any]:
    """Validates the settings of a trial that the user wrote.

    Returns:
        The settings, each in its type.

    Raises:
        ConfigError: A setting is not searched, or a value is outside of its domain.
    """
    checked: dict[str, Any] = {}
    for name, value in params.items():
        domain = space.get(name)
        if domain is None:
            raise ConfigError(f"{source}: {name} is not searched; add it to --vary or --space.")
        value = coerce(TrainConfig, name, value, source)
        if not domain.contains(value):
            raise ConfigError(f"{source}: {name} is {value}; its domain is {domain}.")
        checked[name] = value
    return checked


def resolve_space(
    base: TrainConfig, changes: Changes, source: str, start: Space = DEFAULT
) -> tuple[TrainConfig, dict[str, Domain]]:
    """Applies the user's changes to a space.

    Args:
        base: Settings of all trials.
        changes: See `drone.search.grammar`. Names that are not in the space join it.
        source: Where the changes come from, for error messages.
        start: Space to change.

    Returns:
        The base with the fixed settings, and the space.

    Raises:
        ConfigError: A name is unknown, a value is invalid, or no trial would use a setting.
    """
    space = dict(start)
    fixed: dict[str, Any] = {}
    for name, change in changes.items():
        domain = _domain(name, change, source)
        if isinstance(domain, Choice) and len(domain.values) == 1:
            fixed[name] = domain.values[0]
            space.pop(name, None)
        else:
            space[name] = domain
    base = apply_params(base, fixed, source)
    settings = flatten(to_dict(base))
    # A setting that the fixed ones leave without effect is dropped, unless the user named it.
    space = {
        name: domain
        for name, domain in space.items()
        if name in changes or _ever_has_effect(name, space, settings)
    }
    for name in space:
        if not _ever_has_effect(name, space, settings):
            raise ConfigError(
                f"{source}: {name} is searched, but it has no effect beside the other settings of "
                f"any trial."
            )
        _check_searchable(name, space[name], base, source)
    if not space:
        raise ConfigError(f"{source}: every setting is fixed; there is nothing to search.")
    return base, space


def _domain(name: str, change: Any, source: str) -> Domain:
    setting_type(TrainConfig, name, source)  # Raises if there is no such setting.
    if isinstance(change, Mapping):
        return _range(name, change, source)
    options = change if isinstance(change, (list, tuple)) else (change,)
    values = tuple(coerce(TrainConfig, name, value, source) for value in options)
    if not values or len(set(values)) < len(values):
        raise ConfigError(f"{source}: {name} needs one value or several different ones.")
    return Choice(values)


def _range(name: str, change: Mapping[str, Any], source: str) -> Range:
    try:
        domain = Range(**{**change, "low": float(change["low"]), "high": float(change["high"])})
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{source}: {name} is {dict(change)}; a range has low, high and perhaps log."
        ) from error
    if not isinstance(domain.log, bool):
        raise ConfigError(f"{source}: log of {name} is {domain.log!r}; it must be true or false.")
    if not math.isfinite(domain.low) or not math.isfinite(domain.high):
        raise ConfigError(f"{source}: {name} is {domain}; a range needs finite numbers.")
    if not domain.low < domain.high or (domain.log and domain.low <= 0):
        raise ConfigError(
            f"{source}: {name} is {domain}; low must be below high, and above 0 with log."
        )
    return domain


def _check_searchable(name: str, domain: Domain, base: TrainConfig, source: str) -> None:
    if name in _NOT_SEARCHABLE:
        raise ConfigError(f"{source}: {name} cannot be searched: {_NOT_SEARCHABLE[name]}.")
    is_whole = setting_type(TrainConfig, name, source) is int
    for value in domain.extremes():
        as_int = is_whole and isinstance(value, float) and value.is_integer()
        # The configuration itself validates the value.
        apply_params(base, {name: int(value) if as_int else value}, source)


def _ever_has_effect(name: str, space: Space, settings: Mapping[str, Any]) -> bool:
    return any(has_effect(name, combined) for combined in _control_combinations(space, settings))


def _control_combinations(space: Space, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the settings with every combination of those that decide others' effects."""
    controls = [*_CONTROLS, *set(_PROBABILITY_OF.values())]
    searched = [name for name in controls if name in space]
    # The ends of a range suffice: an effect depends on whether a control is 0, or on its name.
    for values in product(*(space[name].extremes() for name in searched)):
        yield {**settings, **dict(zip(searched, values, strict=True))}


def trial_name(config: TrainConfig) -> str:
    """Returns a short name, `d5 w512 a0.50 lr1e-3`: depth, width, augmentation, head's rate."""
    rate = f"{config.optim.lr_head:.0e}".replace("e-0", "e-")
    return (
        f"d{config.model.unfreeze_depth} w{config.model.head_width} "
        f"a{config.augment.strength:.2f} lr{rate}"
    )
