"""Domains: the values that a searched setting may take."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))

    def extremes(self) -> tuple[Any, ...]:
        """Returns the values that must be valid for the whole domain to be valid."""
        return self.values

    def contains(self, value: Any) -> bool:
        """Whether a trial may have this value."""
        return value in self.values

    def closest(self, value: Any) -> Any:
        """Returns the value of the domain nearest to this one."""
        if value in self.values:
            return value
        # Names have no distance, so any of them will do.
        if not all(isinstance(option, (int, float)) for option in (value, *self.values)):
            return self.values[0]
        return min(self.values, key=lambda option: abs(option - value))


@dataclass(frozen=True)
class Range:
    """Any number between two, both included."""

    low: float
    high: float
    log: bool = False
    """Whether the range is sampled on a logarithmic scale."""

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{' (log)' if self.log else ''}"

    def extremes(self) -> tuple[Any, ...]:
        """Returns the values that must be valid for the whole domain to be valid."""
        return (self.low, self.high)

    def contains(self, value: Any) -> bool:
        """Whether a trial may have this value."""
        return isinstance(value, (int, float)) and self.low <= value <= self.high

    def closest(self, value: Any) -> Any:
        """Returns the value of the domain nearest to this one, in its type."""
        return type(value)(min(max(value, self.low), self.high))


Domain = Choice | Range
Space = Mapping[str, Domain]
"""Domains by setting, named as in TrainConfig: `optim.lr_head`."""
