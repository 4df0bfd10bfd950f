"""Prints the tables of the jobs that prepare and review data sets."""

from typing import TYPE_CHECKING

from drone.labels import short_names
from ray_jobs import console

if TYPE_CHECKING:  # They import pandas and more, which --help must not wait for.
    import pandas as pd

    from drone.workflows.preparation import Comparison, Preparation
    from drone.workflows.requests import PrepareRequest

_MAX_LINES = 20
"""Maximum number of changed files on the screen."""


def show_plan(preparation: "Preparation", request: "PrepareRequest") -> None:
    """Prints the results of the scan, and what happens to the files."""
    plan = preparation.plan
    for folder in plan.unknown_folders:
        console.warn(f"{folder} matches no class and is left out.")
    # Steps that changed nothing are not shown.
    steps = plan.steps[plan.steps.ne(0).any(axis=1)]
    names = [*short_names(plan.settings.classes), "total"]
    console.table("Files by class", ["step", *names], rows_of(steps))
    if plan.settings.policy == "seed":
        title = "As the original counted, a file in several rows"
        console.table(title, ["flag", *names], rows_of(plan.original_counts))
    console.table("Splits", ["split", *names], rows_of(plan.splits))
    groups = plan.near_group_sizes
    console.show(
        f"{len(groups)} groups of near duplicates hold {groups.sum()} images; "
        f"all images of a group are in the same split."
    )
    if request.bins:
        console.table("Bins", ["side", "images", "GB"], rows_of(preparation.bins.astype(object)))
    if request.decisions:
        console.show(
            f"{request.decisions}: {len(preparation.decisions)} decisions, "
            f"{len(plan.new_decisions)} of them new, {preparation.num_missing} on images that are "
            f"not in the raw folders."
        )


def show_comparison(comparison: "Comparison", first: str, second: str) -> None:
    """Prints what differs between two data sets."""
    if comparison.changes.empty:
        console.show(f"No file differs between {first} and {second}.")
        return
    counts = list(comparison.counts.items())
    console.table(f"From {first} to {second}", ["change", "files"], counts)
    columns = ["path", "change", "before", "after"]
    lines = comparison.changes[columns].head(_MAX_LINES).to_numpy().tolist()
    console.table(f"The first {len(lines)}", columns, lines)


def rows_of(table: "pd.DataFrame") -> list[list[object]]:
    """Returns a table's rows, each with its label first."""
    return [[name, *row] for name, row in zip(table.index, table.to_numpy(), strict=True)]
