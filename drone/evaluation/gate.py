"""Whether a candidate may take the champion's place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """One condition of the gate."""

    name: str
    passed: bool
    figures: str
    """What was compared, for a person."""


@dataclass(frozen=True)
class Decision:
    """The outcome of the gate."""

    rules: tuple[Rule, ...]

    @property
    def passed(self) -> bool:
        """Whether every rule holds."""
        return all(rule.passed for rule in self.rules)

    def as_dict(self) -> dict[str, Any]:
        """For a decision document."""
        return {"passed": self.passed, "rules": [vars(rule) for rule in self.rules]}


def decide(candidate: Mapping[str, Any], champion: Mapping[str, Any] | None) -> Decision:
    """A candidate must have the better macro F1 on the same test pictures, if there is a champion.

    Args:
        candidate: its metrics.json on the test split.
        champion: the champion's on the same split, or None if there is no champion yet.
    """
    score = float(candidate["macro_f1"])
    if champion is None:
        rule = Rule("macro F1", True, f"{score:.4f}; there is no champion yet")
        return Decision((rule,))
    held = float(champion["macro_f1"])
    figures = f"{score:.4f} against the champion's {held:.4f} on {candidate['support']} pictures"
    return Decision((Rule("macro F1", score > held, figures),))
