"""Prints results that more than one job ends with."""

from collections import Counter
from dataclasses import astuple
from typing import TYPE_CHECKING

from rich.text import Text

from ray_jobs import console, dataset_tables

if TYPE_CHECKING:
    from drone.cluster.doctor import Finding
    from drone.evaluation.evidence import OutsideBoxes
    from drone.evaluation.operating_point import OperatingPoint
    from drone.workflows.evaluation import EvaluationResult
    from drone.workflows.served_evaluation import ServedEvaluation

_MARKS = {
    "ok": Text("ok", "green"),
    "warning": Text("warning", "yellow"),
    "failure": Text("fails", "bold red"),
}

_MAX_REASONS = 8
"""Maximum number of reasons on the screen; the JSON result has that of each file."""


def show_evaluation(result: "EvaluationResult") -> None:
    """Prints the scores of an evaluation, and where its report is."""
    from drone.evaluation.metrics import describe

    evaluated, scores = result.evaluated, result.scores
    dataset_tables.show_left_out(evaluated.folders_left_out, evaluated.predictions.classes)
    reasons = Counter(evaluated.left_out.values()).most_common()
    for reason, count in reasons[:_MAX_REASONS]:
        path = next(path for path, value in evaluated.left_out.items() if value == reason)
        verb = "file is" if count == 1 else "files are"
        console.warn(f"{count} {verb} left out, such as {path}: {reason}")
    if rest := sum(count for _, count in reasons[_MAX_REASONS:]):
        console.warn(f"{rest} more files are left out for other reasons.")
    rows = [
        [name, row["precision"], row["recall"], row["f1"], int(row["support"])]
        for name, row in scores.by_class.to_dict("index").items()
    ]
    console.table("By class", ["class", "precision", "recall", "F1", "images"], rows)
    if evaluated.by_labels:
        console.table(
            "Accuracy by labels: as collected, without those that the review changed, and changed",
            ["labels", "accuracy", "low", "high", "images"],
            [[name, *astuple(part)] for name, part in evaluated.by_labels.items()],
        )
    if evaluated.known.kinds:
        console.table(
            "Negatives: AUROC, share taken for a class, and that where 95 % of the classes pass",
            ["kind", "AUROC", "low", "high", "taken", "taken at 95 %", "images"],
            [
                [
                    kind.kind,
                    *(kind.auroc.value, kind.auroc.low, kind.auroc.high),
                    *(kind.accepted.value, kind.false_positives.value, kind.accepted.support),
                ]
                for kind in evaluated.known.kinds
            ],
        )
    if evaluated.operating_point:
        _show_operating_point(evaluated.operating_point)
    if result.card:
        console.table(
            f"Conditions, the mildest and the worst of each, on {result.card.num_images} images",
            ["condition", "accuracy", "drone recall", "birds right"],
            [
                [row.text, row.accuracy.value, *(part.value if part else "" for part in parts)]
                for row in result.card.extremes
                for parts in [(row.drone_recall, row.birds_right)]
            ],
        )
    if evaluated.comparisons:
        columns = ["side_px", "images", "accuracy", "ms", "accuracy_1", "ms_1"]
        by_size = evaluated.by_size[columns].astype({"ms": int, "ms_1": int})
        names = ["side", "images", "accuracy", "ms", "squashed", "ms"]
        # As objects: one array of numbers would print counts as 12.0000.
        console.table("By size", names, by_size.astype(object).to_numpy().tolist())
    for comparison in evaluated.comparisons:
        console.show(comparison.sentence)
    if evaluated.outside_boxes:
        _show_outside_boxes(evaluated.outside_boxes)
    console.show(describe(scores), evaluated.known.sentence, f"Report: {result.report}")


def _show_outside_boxes(found: "OutsideBoxes") -> None:
    rows = [[name, *astuple(share)] for name, share in found.by_class.items()]
    console.table("Outside of the boxes", ["class", "evidence", "area", "images"], rows)
    console.show(found.sentence)


def _show_operating_point(point: "OperatingPoint") -> None:
    rows: list[list[object]] = []
    for recall, alarms in point.at.items():
        if alarms is None:
            caught = f"at most {point.reachable:.1%}; the others are none of these"
            rows.append([f"{recall:.0%}", "", caught, "", ""])
            continue
        false_alarms = [alarms.false_alarms.get(name) for name in ("birds", "negatives")]
        rates = [
            f"{part.value:.0f} ({part.low:.0f} to {part.high:.0f})" if part else ""
            for part in false_alarms
        ]
        rows.append([f"{recall:.0%}", alarms.threshold, f"{alarms.drones.value:.1%}", *rates])
    columns = ["drones to catch", "threshold", "recall", "per 1,000 birds", "per 1,000 negatives"]
    console.table("Operating point: drones that raise an alarm, and false alarms", columns, rows)
    if point.few_birds:
        console.show(point.few_birds)


def show_served(result: "ServedEvaluation") -> None:
    """Prints the accuracy of served answers over time, and where its table and figure are."""
    columns = ["week", "model", "kept_as", "images", "labelled", "accuracy", "low", "high"]
    rows = result.by_week[columns].astype(object).to_numpy().tolist()
    names = ["week from", "model", "kept as", *columns[3:]]
    console.table("Served answers that were right, of those labelled since", names, rows)
    console.show(
        f"{result.num_labelled} of {result.num_images} served images are labelled. Only the sample "
        f"tells how good all answers are, and only if all of it is labelled.",
        f"Table: {result.table}",
        f"Figure: {result.figure}",
    )


def show_findings(findings: "list[Finding]") -> None:
    """Prints a row per finding of the doctor, then the fix for each problem."""
    rows = [
        (finding.check, _MARKS[finding.verdict], _machines(finding.machines), finding.message)
        for finding in findings
    ]
    console.table("Doctor", ("check", "verdict", "machines", "finding"), rows)
    for finding in findings:
        if finding.fix:
            console.show(f"{finding.check} on {_machines(finding.machines)}: {finding.fix}")


def _machines(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"
