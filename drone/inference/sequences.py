"""One answer for each clip, folder of numbered images and track, in a table and on a page."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from pyarrow import compute

from drone.files import replacing, replacing_folder, write_whole
from drone.inference.consensus import Agreement, Consensus, Timeline, find_consensus
from drone.inference.parts import Part
from drone.inference.rows import probability_column
from drone.serving.predictor import ModelInfo, Outputs, Prediction, Predictor

TABLE, PAGE = "sequences.csv", "sequences.html"

_PLOTS = "sequences_plots"

_KINDS = {"bird": "a bird", "drone": "a drone", "other": "neither a bird nor a drone"}
"""Roles in sentences."""


@dataclass(frozen=True, kw_only=True)
class SequenceResult:
    """The answer for the frames of a clip, or for an object that boxes follow through it."""

    path: str
    """Clip or folder."""

    track: str
    """Name of the object; empty for whole frames, and where boxes have none."""

    timeline: Timeline
    consensus: Consensus
    prediction: Prediction

    @property
    def sentence(self) -> str:
        """The answer for a person."""
        name = f"{self.path}, {self.track}" if self.track else self.path
        prediction, by_class = self.prediction, self.consensus.by_class
        if prediction.kind is None:
            answer = prediction.label
        else:
            kind = _KINDS[prediction.kind]
            answer = f"{prediction.label} ({prediction.confidence:.0%}), {kind}"
        alarm = "alarm; " if prediction.alarm else ""
        return (
            f"{name}: {alarm}{answer}; {by_class.num_frames} of {self.consensus.num_frames} "
            f"frames; {_sure(by_class)}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns the columns of the table."""
        prediction, consensus = self.prediction, self.consensus
        by_kind = consensus.by_kind
        return {
            "path": self.path,
            "track": self.track,
            "label": prediction.label,
            "kind": prediction.kind,
            "confidence": prediction.confidence,
            "unsure": prediction.unsure,
            "known": prediction.known,
            **({} if prediction.alarm is None else {"alarm": prediction.alarm}),
            **{probability_column(name): p for name, p in prediction.probabilities.items()},
            "frames": consensus.num_frames,
            "frames_of_label": consensus.by_class.num_frames,
            "sure_from_s": consensus.by_class.sure_from_s,
            "frames_of_kind": by_kind and by_kind.num_frames,
            "kind_sure_from_s": by_kind and by_kind.sure_from_s,
        }


def find_sequences(parts: Iterator[Part], predictor: Predictor) -> list[SequenceResult]:
    """Returns an answer for each clip, folder of numbered images and track that has frames.

    Boxes without the name of a track are one, if no frame has two of them: else nothing tells which
    belong together, and they have none.
    """
    frames: dict[tuple[str, str], list[tuple[float, int, list[float], float]]] = {}
    names = [probability_column(name) for name in predictor.info.classes]
    for part in parts:
        table = part.table
        has_answer = compute.and_(
            compute.is_valid(table["sequence"]), compute.is_valid(table["label"])
        )
        for row in table.filter(has_answer).select(_COLUMNS + names).to_pylist():
            frame = (row["time_s"], row["frame"], [row[name] for name in names], row["known"])
            frames.setdefault((row["sequence"], row["track"] or ""), []).append(frame)
    return [
        _result(path, track, found, predictor)
        for (path, track), found in sorted(frames.items())
        if len({frame[1] for frame in found}) == len(found)
    ]


_COLUMNS = ["sequence", "track", "frame", "time_s", "known"]


def _result(
    path: str,
    track: str,
    frames: list[tuple[float, int, list[float], float]],
    predictor: Predictor,
) -> SequenceResult:
    times, _, probabilities, known = zip(*sorted(frames), strict=True)
    outputs = Outputs(np.array(probabilities, np.float32), np.array(known, np.float32))
    timeline = Timeline(times_s=np.array(times, np.float64), outputs=outputs)
    consensus = find_consensus(timeline, predictor.info)
    return SequenceResult(
        path=path,
        track=track,
        timeline=timeline,
        consensus=consensus,
        prediction=predictor.to_predictions(consensus.outputs)[0],
    )


def write_sequences(results: list[SequenceResult], info: ModelInfo, out: Path) -> None:
    """Writes sequences.csv, and sequences.html with a plot of each over time.

    Raises:
        OSError: They cannot be written.
    """
    with replacing(out / TABLE) as file, file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(results[0].as_dict()))
        writer.writeheader()
        writer.writerows(result.as_dict() for result in results)
    with replacing_folder(out / _PLOTS) as building:
        for number, result in enumerate(results):
            _plot(result, info, building / f"{number}.png")
    environment = Environment(
        loader=PackageLoader("drone.inference"), autoescape=select_autoescape()
    )
    html = environment.get_template("sequences.html").render(results=results, plots=_PLOTS)
    write_whole(out / PAGE, html.encode())


def _plot(result: SequenceResult, info: ModelInfo, file: Path) -> None:
    # Imported here: matplotlib takes a second, which images without clips need not wait for.
    from drone.evaluation import plots
    from drone.inference.plots import answers_over_time

    name = f"{Path(result.path).name} {result.track}".strip()
    plots.save(answers_over_time(result.timeline, result.consensus, info, name), file)


def _sure(agreement: Agreement) -> str:
    if agreement.sure_from_s is None:
        return "never sure"
    return f"sure from {agreement.sure_from_s:.1f} s"
