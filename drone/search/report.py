"""The report of a study: one HTML file that needs nothing beside it, and its table as CSV."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape

from drone.data.embed import data_uri
from drone.search.summary import Repeated


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a study came to."""

    title: str
    facts: Mapping[str, str]
    """Run, data set and the like, in the order to show."""

    winner: str
    """In a sentence."""

    trials: pd.DataFrame
    repeated: Sequence[Repeated]
    names: Mapping[int, str]
    """Of the trials by number."""

    sentences: Mapping[str, str]
    """On each setting."""

    figures: Sequence[Path]
    """PNG files, shown in this order."""


def write(folder: Path, findings: Findings) -> Path:
    """Writes report.html and trials.csv into a folder.

    Returns:
        The report's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    findings.trials.to_csv(folder / "trials.csv", index=False)
    environment = Environment(loader=PackageLoader("drone.search"), autoescape=select_autoescape())
    order = findings.trials.sort_values("objective", ascending=False)
    html = environment.get_template("study.html").render(
        findings=findings,
        rows=order.to_dict("records"),
        columns=[name for name in order.columns if name not in ("reason",)],
        figures={figure.stem: data_uri(figure.read_bytes()) for figure in findings.figures},
    )
    target = folder / "report.html"
    target.write_text(html, "utf-8")
    return target
