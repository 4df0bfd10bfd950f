"""The promotion gate: rules that decide whether a candidate may replace the champion.

Both models were evaluated on the same test images, so they are compared image by image.
Axes: N images, K classes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest

from drone.data.prepare.class_names import ALL_KINDS
from drone.errors import DataError
from drone.evaluation.limits import Limits
from drone.evaluation.metrics import ALARM_COLUMN, calibration_error
from drone.evaluation.operating_point import AlarmScores, judge
from drone.labels import ClassSet
from drone.names import printable

_NUM_RESAMPLES = 2000
_SIGNIFICANCE_LEVEL = 0.05

_MIN_CLASSES = 2
"""Classes that two models must have in common."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model that takes part in a promotion, with its evaluation."""

    name: str
    """Its run or version, for messages."""

    predictions: pd.DataFrame
    """One row per test image: path, true, predicted, right and confidence, as predictions.csv has
    them, and alarm_score if the classes tell drones."""

    classes: ClassSet
    """Classes of the model."""

    metrics: dict[str, Any]
    """Content of metrics.json."""

    onnx_difference: float
    """Largest probability difference between the trained and the exported model."""

    size_mb: float
    latency_ms: float


@dataclass(frozen=True)
class Rule:
    """One condition of the gate."""

    name: str
    passed: bool
    figures: str
    """The figures compared, in a sentence for the user."""


@dataclass(frozen=True)
class GateDecision:
    """Outcome of the gate."""

    rules: tuple[Rule, ...]

    @property
    def passed(self) -> bool:
        """Whether every rule passed."""
        return all(rule.passed for rule in self.rules)

    def as_dict(self) -> dict[str, Any]:
        """Returns the decision as JSON values, for the decision document."""
        return {"passed": self.passed, "rules": [vars(rule) for rule in self.rules]}


def apply_gate(candidate: Contender, champion: Contender | None, limits: Limits) -> GateDecision:
    """Applies every rule; without a champion those that compare with it are left out.

    Raises:
        DataError: The two were not evaluated on the same images.
    """
    rules = _absolute_rules(candidate, limits)
    if champion is None:
        score = candidate.metrics["macro_f1"]
        first = Rule("macro F1", True, f"{score:.4f}; there is no champion yet")
        return GateDecision((first, *rules))
    return GateDecision((*_relative_rules(candidate, champion, limits), *rules))


def _on_common_classes(
    candidate: Contender, champion: Contender
) -> tuple[Contender, Contender, list[Rule]]:
    """Returns both on the images of classes that both know, and a rule that says so if they differ.

    Raises:
        DataError: They have fewer than two classes in common.
    """
    ours, theirs = candidate.classes.names, champion.classes.names
    if set(ours) == set(theirs):
        return candidate, champion, []
    common = [name for name in ours if name in theirs]
    if len(common) < _MIN_CLASSES:
        raise DataError(
            f"{candidate.name} and {champion.name} have fewer than two classes in common, so they "
            f"cannot be compared. Promote under another --name."
        )
    parts = [_on_classes(contender, common) for contender in (candidate, champion)]
    figures = (
        f"compared on the {len(parts[0].predictions)} of {len(candidate.predictions)} test images "
        f"of the classes that both know: {', '.join(common)}"
    )
    for what, names in (("new", set(ours) - set(theirs)), ("gone", set(theirs) - set(ours))):
        figures += f"; {what}: {', '.join(sorted(names))}" if names else ""
    return parts[0], parts[1], [Rule("classes", True, figures)]


def _on_classes(contender: Contender, names: Sequence[str]) -> Contender:
    """Returns a contender with its results on the images of some classes."""
    table = contender.predictions[contender.predictions["true"].isin(names)]
    true_N, predicted_N = table["true"].to_numpy(np.str_), table["predicted"].to_numpy(np.str_)
    weights_N = np.ones(len(table), np.int64)
    right_N = table["right"].to_numpy(bool)
    metrics = {
        **contender.metrics,
        "macro_f1": _macro_f1(weights_N, *_f1_counts(true_N, predicted_N, sorted(set(true_N)))),
        "ece": calibration_error(table["confidence"].to_numpy(np.float32), right_N),
        "by_class": {name: contender.metrics["by_class"][name] for name in names},
    }
    return replace(contender, predictions=table, metrics=metrics)


def _absolute_rules(candidate: Contender, limits: Limits) -> list[Rule]:
    recalls = _recalls(candidate)
    weakest = min(recalls, key=recalls.__getitem__)
    ece = float(candidate.metrics["ece"])
    min_recall = limits.min_recall
    if min_recall is None:
        min_recall = 1 / len(candidate.classes)
    return [
        Rule(
            "minimum recall",
            recalls[weakest] >= min_recall,
            f"lowest recall {recalls[weakest]:.3f} ({weakest}); at least {min_recall:.3g}",
        ),
        Rule("calibration", ece <= limits.max_ece, f"ECE {ece:.3f}; at most {limits.max_ece:g}"),
        _accepted_rule(candidate, limits),
        *_false_alarm_rules(candidate, limits),
        Rule(
            "ONNX parity",
            candidate.onnx_difference <= limits.max_onnx_difference,
            f"the exported model's probabilities differ from the trained model's by up to "
            f"{candidate.onnx_difference:.1e}; at most {limits.max_onnx_difference:.0e}",
        ),
        Rule(
            "size",
            candidate.size_mb <= limits.max_size_mb,
            f"{candidate.size_mb:.1f} MB; at most {limits.max_size_mb:g}",
        ),
        Rule(
            "latency",
            candidate.latency_ms <= limits.max_latency_ms,
            f"{candidate.latency_ms:.0f} ms per image; at most {limits.max_latency_ms:g}",
        ),
    ]


def _accepted_rule(candidate: Contender, limits: Limits) -> Rule:
    accepted = float(candidate.metrics["known"]["accepted"]["value"])
    return Rule(
        "known",
        accepted >= limits.min_accepted,
        f"{accepted:.1%} of the images of classes are taken for one; at least "
        f"{limits.min_accepted:.0%}",
    )


def _false_alarm_rules(candidate: Contender, limits: Limits) -> list[Rule]:
    """Returns the rule on false alarms, if a limit is set."""
    if limits.max_false_alarms is None:
        return []
    table = candidate.predictions
    roles = dict(zip(candidate.classes, candidate.classes.roles, strict=True))
    roles_N = table["true"].map(roles).to_numpy(np.str_)
    if ALARM_COLUMN not in table or not {"bird", "drone"} <= set(roles_N):
        return [Rule("false alarms", False, "the test split has no birds and drones to count")]
    scores_N = table[ALARM_COLUMN].to_numpy(np.float64)
    scores = AlarmScores.split(scores_N, roles_N)
    passed, figures = judge(scores, limits.max_false_alarms, limits.alarm_recall)
    return [Rule("false alarms", passed, figures)]


def _relative_rules(candidate: Contender, champion: Contender, limits: Limits) -> list[Rule]:
    candidate, champion, rules = _on_common_classes(candidate, champion)
    pairs = _paired(candidate, champion)
    ece, old_ece = float(candidate.metrics["ece"]), float(champion.metrics["ece"])
    # Macro F1 may rise while more images are wrong in all, and on few images by chance: hence
    # McNemar's test and the bootstrap beside it.
    return [
        *rules,
        *_negatives_rules(candidate, champion, limits),
        _macro_f1_rule(candidate, champion, len(pairs)),
        _bootstrap_rule(pairs, limits),
        _mcnemar_rule(pairs),
        _recall_drop_rule(candidate, champion, limits),
        Rule(
            "calibration increase",
            ece <= old_ece + limits.max_ece_increase,
            f"ECE {old_ece:.3f} -> {ece:.3f}; may increase by {limits.max_ece_increase:g}",
        ),
        Rule(
            "slowdown",
            candidate.latency_ms <= champion.latency_ms * limits.max_slowdown,
            f"{champion.latency_ms:.0f} -> {candidate.latency_ms:.0f} ms per image; at most "
            f"{limits.max_slowdown:g} times",
        ),
    ]


def _macro_f1_rule(candidate: Contender, champion: Contender, num_images: int) -> Rule:
    new, old = float(candidate.metrics["macro_f1"]), float(champion.metrics["macro_f1"])
    return Rule(
        "macro F1",
        # Strictly: a model that only equals the champion is no reason to change what is served.
        new > old,
        f"{new:.4f} against {old:.4f} of {champion.name}, on the same {num_images} images",
    )


def _bootstrap_rule(pairs: pd.DataFrame, limits: Limits) -> Rule:
    confidence, low, high = bootstrap(
        pairs["true"].to_numpy(), pairs["predicted"].to_numpy(), pairs["predicted_old"].to_numpy()
    )
    return Rule(
        "bootstrap",
        confidence >= limits.min_confidence,
        f"macro F1 is higher in {confidence:.1%} of {_NUM_RESAMPLES} resamples (difference "
        f"{low:+.3f} to {high:+.3f}, 95 %); at least {limits.min_confidence:.0%}",
    )


def _mcnemar_rule(pairs: pd.DataFrame) -> Rule:
    gained, lost, p_value = mcnemar(pairs["right"].to_numpy(), pairs["right_old"].to_numpy())
    return Rule(
        "McNemar",
        # A high p-value passes: the rule refuses proven losses and demands no proven gain, which
        # a test split of a hundred images could hardly give.
        p_value >= _SIGNIFICANCE_LEVEL,
        f"{gained} images newly right, {lost} newly wrong; p = {p_value:.3f} of losing so "
        f"many by chance; at least {_SIGNIFICANCE_LEVEL}",
    )


def _recall_drop_rule(candidate: Contender, champion: Contender, limits: Limits) -> Rule:
    recalls, old_recalls = _recalls(candidate), _recalls(champion)
    drops = {name: old_recalls.get(name, 0.0) - recall for name, recall in recalls.items()}
    worst = max(drops, key=drops.__getitem__)
    return Rule(
        "recall drop",
        drops[worst] <= limits.max_recall_drop,
        f"recall of {worst}: {old_recalls.get(worst, 0.0):.3f} -> {recalls[worst]:.3f}; may "
        f"drop by {limits.max_recall_drop:g}",
    )


def _negatives_rules(candidate: Contender, champion: Contender, limits: Limits) -> list[Rule]:
    """Returns the rule on negatives, if the test split has any."""
    kinds, old_kinds = (part.metrics["known"]["kinds"] for part in (candidate, champion))
    if ALL_KINDS not in kinds or ALL_KINDS not in old_kinds:
        return []
    new, old = (float(part[ALL_KINDS]["auroc"]["value"]) for part in (kinds, old_kinds))
    return [
        Rule(
            "negatives",
            new >= old - limits.max_auroc_drop,
            f"AUROC against negatives {old:.3f} -> {new:.3f}; may drop by "
            f"{limits.max_auroc_drop:g}",
        )
    ]


def _paired(candidate: Contender, champion: Contender) -> pd.DataFrame:
    """Returns the predictions of both, one row per image; those of the champion end in _old."""
    columns = ["path", "true", "predicted", "right"]
    pairs = candidate.predictions[columns].merge(
        champion.predictions[columns], on="path", suffixes=("", "_old")
    )
    # An inner join drops images that only one of them has, so the counts must agree.
    complete = len(pairs) == len(candidate.predictions) == len(champion.predictions)
    if not complete or not (pairs["true"] == pairs["true_old"]).all():
        raise DataError(
            f"{candidate.name} and {champion.name} were not evaluated on the same test images: "
            f"{len(candidate.predictions)} and {len(champion.predictions)}, {len(pairs)} in "
            f"common. Evaluate both on the same data set."
        )
    return pairs


def _recalls(contender: Contender) -> dict[str, float]:
    """Returns the recall of each class that has images."""
    by_class = contender.metrics["by_class"].items()
    # A class without test images has recall 0 in metrics.json and would fail every model.
    return {name: float(row["recall"]) for name, row in by_class if row["support"] > 0}


def mcnemar(right_N: NDArray[np.bool_], right_old_N: NDArray[np.bool_]) -> tuple[int, int, float]:
    """Tests whether the new model loses more images than it gains (McNemar 1947, exact).

    Returns:
        The number of images that only the new model has right, the number that only the old one
        has right, and the one-sided p-value: the probability of losing that many or more if
        neither is better.
    """
    gained = int((right_N & ~right_old_N).sum())
    lost = int((~right_N & right_old_N).sum())
    if gained + lost == 0:
        return 0, 0, 1.0
    return gained, lost, float(binomtest(lost, gained + lost, 0.5, alternative="greater").pvalue)


def bootstrap(
    true_N: NDArray[np.str_], new_N: NDArray[np.str_], old_N: NDArray[np.str_], seed: int = 0
) -> tuple[float, float, float]:
    """Estimates how confident one can be that the new model has the higher macro F1 (Efron 1979).

    The images are drawn with replacement, the same ones for both models.

    Args:
        true_N: True classes.
        new_N: Classes that the new model predicts.
        old_N: Classes that the old model predicts.
        seed: Seed of the resampling.

    Returns:
        The share of resamples in which the new model is better (a tie counts half), and the
        bounds of the 95 % interval of the difference.
    """
    # Only classes that have images, as in `metrics.score`: the others have no F1.
    classes = sorted(set(true_N))
    generator = np.random.default_rng(seed)
    counts = [_f1_counts(true_N, predicted_N, classes) for predicted_N in (new_N, old_N)]
    differences = np.empty(_NUM_RESAMPLES)
    for number in range(_NUM_RESAMPLES):
        # How often each image is drawn gives F1 by two matrix products, without indexing.
        draws = generator.integers(0, len(true_N), len(true_N))
        weights_N = np.bincount(draws, minlength=len(true_N))
        new, old = (_macro_f1(weights_N, *parts) for parts in counts)
        differences[number] = new - old
    low, high = np.quantile(differences, [0.025, 0.975])
    # Ties count half, so that two equal models get 0.5 and not 0.
    confidence = (differences > 0).mean() + (differences == 0).mean() / 2
    return float(confidence), float(low), float(high)


def _f1_counts(
    true_N: NDArray[np.str_], predicted_N: NDArray[np.str_], classes: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns what each image adds to a class's true positives and to F1's divisor, (K, N) each."""
    true_KN = np.array([true_N == name for name in classes])
    predicted_KN = np.array([predicted_N == name for name in classes])
    return (true_KN & predicted_KN).astype(float), true_KN.astype(float) + predicted_KN


def _macro_f1(
    weights_N: NDArray[np.int64], hits_KN: NDArray[np.float64], sizes_KN: NDArray[np.float64]
) -> float:
    """Returns macro F1 of weighted images: F1 = 2 true positives / (true + predicted)."""
    hits_K, sizes_K = hits_KN @ weights_N, sizes_KN @ weights_N
    return float(np.mean(2 * hits_K / np.maximum(sizes_K, 1)))


def markdown(decision: dict[str, Any]) -> str:
    """Formats a decision document as Markdown.

    Args:
        decision: `GateDecision.as_dict` with "name", "version", "candidate", "champion" and
            "when".
    """
    verdict = "**passed**" if decision["passed"] else "**did not pass**"
    champion = decision["champion"] or "no champion yet"
    lines = [
        f"# {_plain(decision['name'])}, version {decision['version']}",
        "",
        f"{_plain(decision['candidate'])} {verdict} the gate on {decision['when']}, against "
        f"{champion}.",
        "",
        "| rule | | figures |",
        "|---|---|---|",
    ]
    lines += [
        f"| {rule['name']} | {'pass' if rule['passed'] else 'FAIL'} | {_plain(rule['figures'])} |"
        for rule in decision["rules"]
    ]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Returns text that Markdown shows as it is: names of runs and classes may be anything."""
    return re.sub(r"([\\`*_\[\]<>#|&])", r"\\\1", printable(text))
