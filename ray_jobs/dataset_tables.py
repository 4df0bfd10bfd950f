"""Prints the tables of the jobs that prepare and review data sets."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from drone.labels import CLASSES, ClassSet, nearest
from ray_jobs import console

if TYPE_CHECKING:  # They import pandas and more, which --help must not wait for.
    import pandas as pd

    from drone.data.prepare.listing import LeftOut
    from drone.workflows.preparation import Comparison, Preparation
    from drone.workflows.requests import PrepareRequest

_MAX_COLUMNS = 10
"""Maximum number of classes, and their total, that are columns of a table."""

_MAX_LINES = 20
"""Maximum number of changed files on the screen."""


def show_plan(preparation: "Preparation", request: "PrepareRequest") -> None:
    """Prints the results of the scan, and what happens to the files."""
    plan = preparation.plan
    show_left_out(plan.left_out, plan.classes)
    # Before the table: these files hold images, which a conversion would add to the data set.
    unsupported = plan.manifest.loc[plan.manifest["reason"] == "unsupported", "detail"]
    for detail, count in unsupported.value_counts().items():
        console.warn(f"{count} {'file is' if count == 1 else 'files are'} left out. {detail}")
    classes = plan.classes.short_names
    # The column of negatives has no abbreviation.
    names = [*classes, *plan.labels[len(classes) :], "total"]
    # Steps that changed nothing are not shown.
    steps = plan.steps[plan.steps.ne(0).any(axis=1)]
    _class_table("Files by class", "step", names, steps)
    if plan.settings.policy == "seed":
        title = "As the original counted, a file in several rows"
        _class_table(title, "flag", [*classes, "total"], plan.original_counts)
    _class_table("Splits", "split", names, plan.splits)
    _show_roles(plan.classes)
    if plan.kinds:
        by_kind = plan.negatives.loc[:, plan.negatives.ne(0).any()]
        console.table("Negatives by kind", ["kind", *by_kind.columns], rows_of(by_kind))
    groups = plan.near_group_sizes
    console.show(f"{len(groups)} groups of near duplicates hold {groups.sum()} images.")
    _show_straddling(plan.straddling)
    if request.bins:
        console.table("Bins", ["side", "images", "GB"], rows_of(preparation.bins.astype(object)))
    if request.decisions:
        console.show(
            f"{request.decisions}: {preparation.num_decided} decisions, "
            f"{len(plan.new_decisions)} of them new, {preparation.num_missing} on images that are "
            f"not in the raw folders."
        )


def _class_table(title: str, label: str, names: Sequence[str], counts: "pd.DataFrame") -> None:
    """Prints counts with a column per class; many classes have a row each instead."""
    if len(names) <= _MAX_COLUMNS:
        console.table(title, [label, *names], rows_of(counts))
    else:
        console.table(
            title, ["class", *map(str, counts.index)], rows_of(counts.set_axis(names, axis=1).T)
        )


def _show_roles(classes: ClassSet) -> None:
    """Prints which classes count as birds and drones, if that is not as everybody expects."""
    if classes == CLASSES:
        return
    parts = [
        f"{role}: {', '.join(names) if len(classes) < _MAX_COLUMNS else f'{len(names)} classes'}"
        for role in classes.present_roles
        for names in [[classes[index] for index in classes.indices(role)]]
    ]
    console.show(f"Roles of the classes: {'; '.join(parts)}")
    if not classes.tells_drones:
        console.show(
            "Without classes that are drones and others that are not there are no alarms; a YAML "
            "file for --classes sets a role for each class."
        )


def _show_straddling(straddling: "pd.DataFrame") -> None:
    if straddling.empty:
        console.show("All images of a group are in the same split.")
        return
    console.table("Across splits", ["class", *straddling.columns], rows_of(straddling))
    console.warn(
        f"{straddling.to_numpy().sum()} images have near duplicates in another split, so models "
        f"look better on them than they are. Without --keep-split there are none."
    )


def show_left_out(left_out: "Sequence[LeftOut]", classes: Sequence[str]) -> None:
    """Prints which folders of the raw images are not read, those with the most files first."""
    largest = sorted(left_out, key=lambda item: -item.num_files)
    for item in largest[:_MAX_LINES]:
        like = nearest(item.folder, classes) if item.reason == "no class" else None
        hint = f" Rename it if it is meant to be {like!r}." if like else ""
        console.warn(f"{item}{hint}")
    if rest := largest[_MAX_LINES:]:
        files = sum(item.num_files for item in rest)
        console.warn(f"{len(rest)} more folders: {files} files left out.")


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
