"""The report of a study: one self-contained HTML file, and its table as CSV."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape

from drone.data.embed import data_uri


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """Content of the report."""

    title: str
    facts: Mapping[str, str]
    """Run, data set and the like, in the order to show."""

    winner: str
    """The result in a sentence."""

    advice: Sequence[str]
    """What would improve a model beside a search."""

    trials: pd.DataFrame
    """See `summary.table`."""

    confirmed: pd.DataFrame
    """Likewise of the confirmation; empty without one."""

    objective: str
    """What the scores are, in words."""

    sentences: Mapping[str, str]
    """A sentence on the effect of each setting."""

    figures: Sequence[Path]
    """PNG files, shown in this order."""


def write(folder: Path, report: StudyReport) -> Path:
    """Writes report.html and trials.csv into a folder.

    Returns:
        The report's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report.trials.to_csv(folder / "trials.csv", index=False)
    # Escaped: names and reasons may hold anything.
    environment = Environment(loader=PackageLoader("drone.search"), autoescape=select_autoescape())
    tables = {"Trials": report.trials, "The best, trained again": report.confirmed}
    html = environment.get_template("study.html").render(
        report=report,
        tables={
            title: {"columns": list(table.columns), "rows": table.to_dict("records")}
            for title, table in tables.items()
            if len(table)
        },
        figures={figure.stem: data_uri(figure.read_bytes()) for figure in report.figures},
    )
    target = folder / "report.html"
    # The data set may be in a folder whose name is not UTF-8.
    target.write_text(html, "utf-8", errors="backslashreplace")
    return target
