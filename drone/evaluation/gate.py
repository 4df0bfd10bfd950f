"""Whether a candidate may take the champion's place: rules, each with its figures.

Both models have answered about the same test pictures, so they are compared picture by picture.
Axes: N pictures, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest

from drone.errors import DataError
from drone.evaluation.limits import Limits

_RESAMPLES = 2000
_SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model with what is known of it."""

    name: str
    """For a person: its run or version."""

    answers: pd.DataFrame
    """A row for each test picture: path, true, predicted, right (as predictions.csv has them)."""

    metrics: dict[str, Any]
    """As metrics.json has them."""

    onnx_difference: float
    mb: float
    ms: float


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


def decide(candidate: Contender, champion: Contender | None, limits: Limits) -> Decision:
    """Applies every rule; those that compare are left out if there is no champion yet.

    Raises:
        DataError: the two did not answer about the same pictures.
    """
    rules = [*_alone(candidate, limits)]
    if champion is None:
        score = candidate.metrics["macro_f1"]
        first = Rule("macro F1", True, f"{score:.4f}; there is no champion yet")
        return Decision((first, *rules))
    return Decision((*_against(candidate, champion, limits), *rules))


def _alone(candidate: Contender, limits: Limits) -> list[Rule]:
    recalls = _recalls(candidate)
    weakest = min(recalls, key=recalls.__getitem__)
    ece = float(candidate.metrics["ece"])
    return [
        Rule(
            "floor of each class",
            recalls[weakest] >= limits.floor,
            f"the lowest recall is {recalls[weakest]:.3f} ({weakest}); at least {limits.floor:g}",
        ),
        Rule("calibration", ece <= limits.most_ece, f"ECE {ece:.3f}; at most {limits.most_ece:g}"),
        Rule(
            "exported model",
            candidate.onnx_difference <= limits.most_onnx_difference,
            f"its probabilities differ by up to {candidate.onnx_difference:.1e} from the trained "
            f"one's; at most {limits.most_onnx_difference:.0e}",
        ),
        Rule(
            "size",
            candidate.mb <= limits.most_mb,
            f"{candidate.mb:.1f} MB; at most {limits.most_mb:g}",
        ),
        Rule(
            "latency",
            candidate.ms <= limits.most_ms,
            f"{candidate.ms:.0f} ms a picture; at most {limits.most_ms:g}",
        ),
    ]


def _against(candidate: Contender, champion: Contender, limits: Limits) -> list[Rule]:
    pairs = _paired(candidate, champion)
    new, old = float(candidate.metrics["macro_f1"]), float(champion.metrics["macro_f1"])
    sure, low, high = bootstrap(
        pairs["true"].to_numpy(), pairs["predicted"].to_numpy(), pairs["predicted_old"].to_numpy()
    )
    gained, lost, worse_p = mcnemar(pairs["right"].to_numpy(), pairs["right_old"].to_numpy())
    recalls, held = _recalls(candidate), _recalls(champion)
    fallen = max(recalls, key=lambda name: held.get(name, 0.0) - recalls[name])
    ece, old_ece = float(candidate.metrics["ece"]), float(champion.metrics["ece"])
    return [
        Rule(
            "macro F1",
            new > old,
            f"{new:.4f} against {old:.4f} of {champion.name}, on the same {len(pairs)} pictures",
        ),
        Rule(
            "bootstrap",
            sure >= limits.confidence,
            f"the higher macro F1 in {sure:.1%} of {_RESAMPLES} resamplings (difference "
            f"{low:+.3f} to {high:+.3f}, 95 %); at least {limits.confidence:.0%}",
        ),
        Rule(
            "McNemar",
            worse_p >= _SIGNIFICANT,
            f"{gained} pictures newly right, {lost} newly wrong; p = {worse_p:.3f} that so many "
            f"are lost by chance; at least {_SIGNIFICANT}",
        ),
        Rule(
            "no class given up",
            held.get(fallen, 0.0) - recalls[fallen] <= limits.most_recall_lost,
            f"recall of {fallen}: {held.get(fallen, 0.0):.3f} -> {recalls[fallen]:.3f}; may fall "
            f"by {limits.most_recall_lost:g}",
        ),
        Rule(
            "calibration kept",
            ece <= old_ece + limits.most_ece_more,
            f"ECE {old_ece:.3f} -> {ece:.3f}; may rise by {limits.most_ece_more:g}",
        ),
        Rule(
            "latency kept",
            candidate.ms <= champion.ms * limits.most_times_slower,
            f"{champion.ms:.0f} -> {candidate.ms:.0f} ms a picture; at most "
            f"{limits.most_times_slower:g} times",
        ),
    ]


def _paired(candidate: Contender, champion: Contender) -> pd.DataFrame:
    columns = ["path", "true", "predicted", "right"]
    pairs = candidate.answers[columns].merge(
        champion.answers[columns], on="path", suffixes=("", "_old")
    )
    whole = len(pairs) == len(candidate.answers) == len(champion.answers)
    if not whole or not (pairs["true"] == pairs["true_old"]).all():
        raise DataError(
            f"{candidate.name} and {champion.name} were not asked about the same test pictures: "
            f"{len(candidate.answers)} and {len(champion.answers)}, {len(pairs)} in common. "
            f"Evaluate both on the same data set."
        )
    return pairs


def _recalls(contender: Contender) -> dict[str, float]:
    """Recall of each class that has pictures."""
    by_class = contender.metrics["by_class"].items()
    return {name: float(row["recall"]) for name, row in by_class if row["support"] > 0}


def mcnemar(right_N: NDArray[np.bool_], right_old_N: NDArray[np.bool_]) -> tuple[int, int, float]:
    """McNemar's exact test (1947) of whether the new model loses more pictures than it gains.

    Returns:
        Pictures that only the new one has right, those that only the old one has, and the
        probability of losing as many or more if neither is better (one-sided).
    """
    gained = int((right_N & ~right_old_N).sum())
    lost = int((~right_N & right_old_N).sum())
    if gained + lost == 0:
        return 0, 0, 1.0
    return gained, lost, float(binomtest(lost, gained + lost, 0.5, alternative="greater").pvalue)


def bootstrap(
    true_N: NDArray[np.str_], new_N: NDArray[np.str_], old_N: NDArray[np.str_], seed: int = 0
) -> tuple[float, float, float]:
    """How sure it is that the new answers have the higher macro F1 (Efron 1979).

    The pictures are drawn with replacement, the same ones for both.

    Returns:
        Share of the resamplings in which the new one is better (a tie counts half), and the ends
        of the 95 % interval of the difference.
    """
    classes = sorted(set(true_N))
    generator = np.random.default_rng(seed)
    counts = [_by_class(true_N, answers_N, classes) for answers_N in (new_N, old_N)]
    differences = np.empty(_RESAMPLES)
    for number in range(_RESAMPLES):
        drawn = np.bincount(generator.integers(0, len(true_N), len(true_N)), minlength=len(true_N))
        new, old = (_macro_f1(drawn, parts) for parts in counts)
        differences[number] = new - old
    low, high = np.quantile(differences, [0.025, 0.975])
    sure = (differences > 0).mean() + (differences == 0).mean() / 2
    return float(sure), float(low), float(high)


def _by_class(
    true_N: NDArray[np.str_], answers_N: NDArray[np.str_], classes: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each picture and class: whether it is a hit, and how often it counts in F1's divisor."""
    is_KN = np.array([true_N == name for name in classes])
    said_KN = np.array([answers_N == name for name in classes])
    return (is_KN & said_KN).astype(float), is_KN.astype(float) + said_KN.astype(float)


def _macro_f1(
    drawn_N: NDArray[np.int64], parts: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> float:
    """Macro F1 where picture n counts drawn_N[n] times: F1 = 2 hits / (true + said)."""
    hits_K, sizes_K = (part @ drawn_N for part in parts)
    return float(np.mean(2 * hits_K / np.maximum(sizes_K, 1)))


def markdown(decision: dict[str, Any]) -> str:
    """A decision document for a person.

    Args:
        decision: `Decision.as_dict` with "name", "version", "candidate", "champion", "when".
    """
    verdict = "**passed**" if decision["passed"] else "**did not pass**"
    champion = decision["champion"] or "no champion yet"
    lines = [
        f"# {decision['name']}, version {decision['version']}",
        "",
        f"{decision['candidate']} {verdict} the gate on {decision['when']}, against {champion}.",
        "",
        "| rule | | figures |",
        "|---|---|---|",
    ]
    lines += [
        f"| {rule['name']} | {'pass' if rule['passed'] else 'FAIL'} | {rule['figures']} |"
        for rule in decision["rules"]
    ]
    return "\n".join(lines) + "\n"
