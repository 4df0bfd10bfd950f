"""What a search varies: settings by name, each with the values that it may take.

Names are those of TrainConfig, such as `optim.lr_head`. A setting that has no effect beside the
others of a trial (a learning rate of the backbone when no block learns) is not suggested for it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

from drone.config import coerce, flatten, override, to_dict
from drone.errors import ConfigError
from drone.labels import nearest
from drone.training.config import TrainConfig


@dataclass(frozen=True)
class Choice:
    """One of a few values, in their order if they have one."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))

    def examples(self) -> tuple[Any, ...]:
        """Values that must be allowed for all of them to be."""
        return self.values


@dataclass(frozen=True)
class Range:
    """Any number between two, both included."""

    low: float
    high: float
    log: bool = False
    """Whether factors count and not differences."""

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{' (log)' if self.log else ''}"

    def examples(self) -> tuple[Any, ...]:
        """Values that must be allowed for all of them to be."""
        return (self.low, self.high)


Domain = Choice | Range
Space = Mapping[str, Domain]

DEFAULT: Space = {
    # The whole head or also the last convolution, then whole stages of one resolution and width;
    # 3 is the original's.
    "model.unfreeze_depth": Choice((0, 1, 2, 3, 5, 8, 12, 19)),
    "model.head_width": Choice((0, 128, 256, 512, 1024)),
    # Levels, so that trials share views.
    "augment.strength": Choice((0.0, 0.25, 0.5, 0.75, 1.0)),
    "optim.lr_head": Range(3e-4, 1e-2, log=True),
    "optim.lr_backbone": Range(2e-5, 1e-3, log=True),
    "optim.weight_decay": Range(1e-3, 0.3, log=True),
    "model.dropout": Range(0.0, 0.5),
    "optim.label_smoothing": Range(0.0, 0.2),
    "optim.ema_decay": Choice((0.0, 0.9, 0.97, 0.99)),
}
"""What is searched unless the user says otherwise."""

_NOT_SEARCHED = {
    "preset": "it is only a name",
    "seed": "a seed is no setting to choose (--seed sets it)",
    "epochs": "trials can be compared only after the same epochs (--epochs sets them)",
    "checkpoint_every_s": "it changes no result",
    "compile": "it changes no result",
    "select": "it decides what a trial's score is",
}

_CONTROLS = (
    "model.unfreeze_depth",
    "model.head",
    "model.resizer",
    "augment.strength",
    "optim.schedule",
)
"""Settings that decide whether others have an effect."""

_WITH_PROBABILITY = {
    "augment.brightness": "augment.brightness_p",
    "augment.contrast": "augment.contrast_p",
    "augment.rotation_deg": "augment.rotation_p",
    "augment.shift": "augment.shift_p",
    "augment.cutout_min": "augment.cutout_p",
    "augment.cutout_max": "augment.cutout_p",
    "augment.elastic": "augment.elastic_p",
}


class Suggester(Protocol):
    """What chooses values: an Optuna trial, say."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
        """A whole number."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        """A number."""


def is_read(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a setting has an effect beside these others, given flat."""
    if name in ("optim.lr_backbone", "optim.head_epochs") and not settings["model.unfreeze_depth"]:
        return False
    if name in ("optim.head_epochs", "optim.warmup_epochs"):
        return bool(settings["optim.schedule"] == "cosine")
    if name == "model.head_width":
        return bool(settings["model.head"] == "mlp")
    if name in ("optim.resizer_share", "pixel_budget"):
        return bool(settings["model.resizer"] != "none")
    if name == "model.resizer_start":
        return bool(settings["model.resizer"] == "stack")
    if name.startswith("augment.") and name != "augment.strength":
        probability = _WITH_PROBABILITY.get(name)
        never = probability is not None and settings[probability] == 0
        return bool(settings["augment.strength"] > 0) and not never
    return True


def suggest(space: Space, base: TrainConfig, trial: Suggester) -> dict[str, Any]:
    """The values of a trial by name; those without effect are left out."""
    settings = flatten(to_dict(base))
    chosen: dict[str, Any] = {}
    for name in _in_order(space):
        if not is_read(name, {**settings, **chosen}):
            continue
        domain = space[name]
        if isinstance(domain, Choice):
            chosen[name] = trial.suggest_categorical(name, domain.values)
        elif isinstance(settings[name], int):
            chosen[name] = trial.suggest_int(
                name, int(domain.low), int(domain.high), log=domain.log
            )
        else:
            chosen[name] = trial.suggest_float(name, domain.low, domain.high, log=domain.log)
    return chosen


def _in_order(space: Space) -> list[str]:
    """What others depend on first; probabilities depend on a control, and others on them."""
    probabilities, names = _WITH_PROBABILITY.values(), list(space)
    return sorted(
        space,
        key=lambda name: (name not in _CONTROLS, name not in probabilities, names.index(name)),
    )


def configure(base: TrainConfig, params: Mapping[str, Any], source: str) -> TrainConfig:
    """A configuration with some settings changed, given flat."""
    nested: dict[str, Any] = {}
    for name, value in params.items():
        *groups, last = name.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return override(base, nested, source)


def settings_of(base: TrainConfig, space: Space) -> dict[str, Any]:
    """The searched settings as the base has them, brought within their domains."""
    settings = flatten(to_dict(base))
    found = {}
    for name, domain in space.items():
        value = settings[name]
        if isinstance(domain, Range):
            value = type(value)(min(max(value, domain.low), domain.high))
        elif value not in domain.values:
            value = _nearest(value, domain.values)
        found[name] = value
    return found


def _nearest(value: Any, options: Sequence[Any]) -> Any:
    if not all(isinstance(option, (int, float)) for option in (value, *options)):
        return options[0]
    return min(options, key=lambda option: abs(option - value))


def check_trial(params: Mapping[str, Any], space: Space, source: str) -> dict[str, Any]:
    """Makes sure that a trial of given settings lies in the space.

    Returns:
        The settings, each of its own type.

    Raises:
        ConfigError: a setting that is not searched, or a value outside of its domain.
    """
    checked: dict[str, Any] = {}
    for name, value in params.items():
        domain = space.get(name)
        if domain is None:
            raise ConfigError(f"{source}: {name} is not searched; put it into --vary or --space.")
        value = coerce(TrainConfig, name, value, source)
        inside = (
            value in domain.values
            if isinstance(domain, Choice)
            else isinstance(value, (int, float)) and domain.low <= value <= domain.high
        )
        if not inside:
            raise ConfigError(f"{source}: {name} is {value}; it is searched in {domain}.")
        checked[name] = value
    return checked


def resolve(
    base: TrainConfig, changes: Mapping[str, Any], source: str, start: Space | None = None
) -> tuple[TrainConfig, dict[str, Domain]]:
    """A space, changed as the user wants it.

    Args:
        base: settings of all trials.
        changes: by name: a value fixes the setting, a list gives choices, a mapping with `low`,
            `high` and perhaps `log` a range. Names that are not in the space join it.
        source: where the changes come from, for messages.
        start: the space to change; by default DEFAULT.

    Returns:
        The base with what is fixed, and what is searched.

    Raises:
        ConfigError: an unknown name, a value that is not allowed, or a name that no trial would
            read.
    """
    space = dict(DEFAULT if start is None else start)
    known = flatten(to_dict(base))
    fixed: dict[str, Any] = {}
    for name, change in changes.items():
        if name not in known:
            like = nearest(name, list(known))
            hint = f" Did you mean {like!r}?" if like else " See train.py --help for the names."
            raise ConfigError(f"{source}: there is no setting {name!r}.{hint}")
        domain = _domain(name, change, source)
        if isinstance(domain, Choice) and len(domain.values) == 1:
            fixed[name] = domain.values[0]
            space.pop(name, None)
        else:
            space[name] = domain
    base = configure(base, fixed, source)
    for name in [name for name in space if name not in changes]:
        if not _ever_read(name, space, base):
            del space[name]  # What the user fixed leaves it without effect.
    for name in space:
        _check(name, space, base, source)
    if not space:
        raise ConfigError(f"{source}: every setting is fixed; there is nothing to search.")
    return base, space


def _domain(name: str, change: Any, source: str) -> Domain:
    if isinstance(change, Mapping):
        try:
            bounds = {**change, "low": float(change["low"]), "high": float(change["high"])}
            domain = Range(**bounds)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{source}: {name} is {dict(change)}; a range has low, high and perhaps log."
            ) from error
        if not math.isfinite(domain.low) or not math.isfinite(domain.high):
            raise ConfigError(f"{source}: {name} is {domain}; a range goes between finite numbers.")
        if not domain.low < domain.high or (domain.log and domain.low <= 0):
            raise ConfigError(
                f"{source}: {name} is {domain}; low must be below high, and above 0 with log."
            )
        return domain
    given = change if isinstance(change, (list, tuple)) else (change,)
    values = tuple(coerce(TrainConfig, name, value, source) for value in given)
    if not values or len(set(values)) < len(values):
        raise ConfigError(f"{source}: {name} needs one value or several different ones.")
    return Choice(values)


def _check(name: str, space: Space, base: TrainConfig, source: str) -> None:
    if name in _NOT_SEARCHED:
        raise ConfigError(f"{source}: {name} cannot be searched: {_NOT_SEARCHED[name]}.")
    whole = isinstance(flatten(to_dict(base))[name], int)
    for value in space[name].examples():
        is_whole = whole and isinstance(value, float) and value.is_integer()
        configure(base, {name: int(value) if is_whole else value}, source)
    if not _ever_read(name, space, base):
        raise ConfigError(
            f"{source}: {name} is searched, but no trial would read it: beside the other settings "
            f"it has no effect."
        )


def _ever_read(name: str, space: Space, base: TrainConfig) -> bool:
    return any(is_read(name, settings) for settings in _controlled(space, base))


def _controlled(space: Space, base: TrainConfig) -> Iterator[dict[str, Any]]:
    """The base with every combination of what decides whether other settings count."""
    settings = flatten(to_dict(base))
    controls = [*_CONTROLS, *set(_WITH_PROBABILITY.values())]
    searched = [name for name in controls if name in space]
    for values in product(*(space[name].examples() for name in searched)):
        yield {**settings, **dict(zip(searched, values, strict=True))}


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Changes as a command line has them: NAME=VALUE, NAME=A,B,C or NAME=LOW..HIGH.

    A range is logarithmic where the default is, or where it spans a factor of 10 or more.

    Raises:
        ConfigError: a word of another form.
    """
    changes: dict[str, Any] = {}
    for word in words:
        name, found, text = word.partition("=")
        if not found or not text:
            raise ConfigError(f"{word!r}: write NAME=VALUE, NAME=A,B,C or NAME=LOW..HIGH.")
        if ".." in text:
            low, high = (_value(part) for part in text.split("..", 1))
            if isinstance(low, str) or isinstance(high, str):
                raise ConfigError(f"{word!r}: a range goes from one number to another.")
            default = DEFAULT.get(name)
            log = default.log if isinstance(default, Range) else low > 0 and high / low >= 10
            changes[name] = {"low": low, "high": high, "log": log and low > 0}
        elif "," in text:
            changes[name] = [_value(part) for part in text.split(",")]
        else:
            changes[name] = _value(text)
    return changes


def flat_changes(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Changes from a file, whether names have dots or stand in groups."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and "low" not in value and "high" not in value:
            flat.update(flat_changes(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def trial_name(config: TrainConfig) -> str:
    """A trial in a few letters, `d5 w512 a0.50 lr1e-3`: depth, width, augmentation, head's rate."""
    rate = f"{config.optim.lr_head:.0e}".replace("e-0", "e-")
    return (
        f"d{config.model.unfreeze_depth} w{config.model.head_width} "
        f"a{config.augment.strength:.2f} lr{rate}"
    )
