"""Predicts images: in threads of this process, or on Ray where they are many."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from drone.cluster import connection
from drone.data.prepare.roots import escaped_name
from drone.errors import DataError, Interrupted
from drone.files import locked
from drone.inference import class_folders, contact_sheet, results, sequences
from drone.inference.box_files import read_boxes
from drone.inference.boxes import assign_boxes
from drone.inference.items import Item
from drone.inference.listing import list_items, sampled
from drone.inference.parts import Parts
from drone.inference.prediction import Views, predict_rows
from drone.inference.rows import Row
from drone.inference.sequences import SequenceResult
from drone.serving.predictor import Predictor
from drone.storage.filesystem import absolute
from drone.storage.raw_roots import is_file, open_root
from drone.workflows.display import SILENT, Counting, Display
from drone.workflows.model_source import fetch_model
from drone.workflows.requests import PredictRequest

_PARTS, _LOCK, _SORTED = "parts", ".lock", "sorted"

_REMOTE_THREADS = 16
"""Threads where images come from object storage, and reading is mostly waiting."""


@dataclass(frozen=True, kw_only=True)
class PredictionResult:
    """What was predicted, and where it is."""

    num_images: int
    """Files that were named."""

    num_new: int
    """Those that this run predicted; the others were predicted before."""

    labels: dict[str, int]
    """Images by label, the most frequent first."""

    not_read: dict[str, int]
    """Files without a prediction, by reason."""

    num_unsure: int

    num_alarms: int | None
    """Images, frames and boxes that raise an alarm; None for a model without alarms."""

    images_per_s: float
    """Images, frames and boxes per second of this run; 0 if nothing was new."""

    table: Path
    """Table of the predictions, as parquet; predictions.csv beside it is the same."""

    page: Path
    """Contact sheet."""

    sequences: tuple[SequenceResult, ...]
    """Answers for clips, folders of numbered images and tracks; sequences.html shows them."""

    class_folders: Path | None
    """Folder with the images in class folders, if they were to be laid out."""

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {
            name: str(value) if isinstance(value, Path) else value for name, value in values.items()
        }
        return {**plain, "sequences": [sequence.as_dict() for sequence in self.sequences]}


@dataclass(frozen=True)
class _Job:
    """What a run works with."""

    request: PredictRequest
    predictor: Predictor
    items: list[Item]
    parts: Parts
    display: Display


def predict(request: PredictRequest, display: Display = SILENT) -> PredictionResult:
    """Predicts images and writes tables and a contact sheet; continues what was interrupted.

    Raises:
        Interrupted: It was stopped; what was predicted is kept.
        ConfigError: The folder holds the predictions of another model or of other images.
        DataError: A name leads to no image, or the folder cannot be written.
        LockedError: Another process is writing into the folder.
        RunError: There is no such model, or it gives no predictions.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        onnx = fetch_model(request, folder).onnx
        predictor = Predictor(onnx, threads=1, max_concurrency=os.cpu_count())
        # A broken model fails here, and not in the middle.
        predictor.start()
        items = _with_boxes(request, sampled(_list(request), request.every_s), display)
        if request.sort:
            class_folders.check_layout(items, request.sort)
        try:
            request.out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(request.out / _LOCK, str(request.out)))
            parts = Parts(request.out / _PARTS, predictor.info.classes)
            parts.open(_settings(request, predictor))
            return _run(_Job(request, predictor, items, parts, display))
        except OSError as error:
            raise DataError(
                f"{request.out} cannot be written: {error.strerror or error}. Free some space or "
                f"choose another --out; the same command continues."
            ) from error


def _list(request: PredictRequest) -> list[Item]:
    """Lists the images; what an earlier run has written below one of the folders is none."""
    written = f"{escaped_name(str(request.out.absolute()))}/"
    items = list_items(request.images, open_root, is_file)
    images = [item for item in items if not item.path.startswith(written)]
    if not images:
        raise DataError(f"All images are in --out {request.out}. Choose another --out.")
    return images


def _with_boxes(request: PredictRequest, items: list[Item], display: Display) -> list[Item]:
    """Returns the items that have boxes, with these, if the user named boxes; else all items."""
    if request.boxes is None:
        return items
    boxes = assign_boxes(read_boxes(request.boxes), [Path(item.path) for item in items])
    with_boxes = [
        replace(item, boxes=tuple(boxes[Path(item.path)]))
        for item in items
        if Path(item.path) in boxes
    ]
    if num_without := len(items) - len(with_boxes):
        display.show(f"{num_without} of {len(items)} files have no box and are left out.")
    return with_boxes


def _settings(request: PredictRequest, predictor: Predictor) -> dict[str, Any]:
    """Returns what decides the predictions, beside the images themselves."""
    return {
        "model": predictor.checksum,
        "--images": [absolute(name) for name in request.images],
        "--every-s": request.every_s,
        "--margin": request.margin,
        "--discount": request.discount,
    }


def _run(job: _Job) -> PredictionResult:
    finished = job.parts.keys()
    missing = [item for item in job.items if item.key not in finished]
    started = time.monotonic()
    try:
        num_rows = _predict_missing(job, missing)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Predicting was stopped; {job.request.out} keeps what was predicted. Run the same "
            f"command again to continue."
        ) from None
    speed = num_rows / (time.monotonic() - started)
    return _write_results(job, len(missing), speed)


def _predict_missing(job: _Job, missing: list[Item]) -> int:
    """Predicts items; returns the number of rows."""
    if not missing:
        return 0
    num_before = len(job.items) - len(missing)
    with _rows(job, missing) as rows, job.display.counting(len(job.items), num_before) as progress:
        # The sum drives the work: rows are written as they come.
        return sum(job.parts.write(_shown(rows, progress)))


def _shown(rows: Iterator[Row], progress: Counting) -> Iterator[Row]:
    for row in rows:
        yield row
        progress.advance(is_last=row.is_last)


@contextlib.contextmanager
def _rows(job: _Job, items: list[Item]) -> Iterator[Iterator[Row]]:
    """Yields the rows of items, from threads of this process or from Ray."""
    if len(items) < job.request.ray_from:
        # Of object storage, reading is mostly waiting.
        is_remote = any("://" in item.root for item in items)
        threads = _REMOTE_THREADS if is_remote else None
        found = predict_rows(job.predictor, items, open_root, threads, _views(job))
        with contextlib.closing(found) as rows:
            yield rows
        return
    with connection.connected():
        # Ray takes seconds to import, which few images do not need.
        from drone.cluster.inference import predict_on_ray

        with contextlib.closing(predict_on_ray(job.predictor, items, _views(job))) as rows:
            yield rows


def _views(job: _Job) -> Views:
    request = job.request
    return Views(every_s=request.every_s, margin=request.margin, discount=request.discount)


def _write_results(job: _Job, num_new: int, images_per_s: float) -> PredictionResult:
    out, classes = job.request.out, job.predictor.info.classes
    by_key = {item.key: item for item in job.items}
    optional = results.optional_columns(job.parts.read(by_key))
    columns = results.columns_of(classes, optional)
    counts = results.write_tables(job.parts.read(by_key), columns, out)
    page = out / "predictions.html"
    alarms = job.predictor.info.alarm_above is not None
    facts = [f"{len(job.items)} files", f"{counts.num_unsure} unsure", f"model {_name(job)}"]
    if alarms:
        facts.insert(2, f"{counts.num_alarms} alarms")
    parts = job.parts.read(by_key)
    contact_sheet.write_contact_sheet(parts, classes, page, facts, alarms=alarms)
    found = sequences.find_sequences(job.parts.read(by_key), job.predictor)
    if found:
        sequences.write_sequences(found, job.predictor.info, out)
    return PredictionResult(
        num_images=len(job.items),
        num_new=num_new,
        labels=dict(counts.labels.most_common()),
        not_read=dict(counts.reasons.most_common()),
        num_unsure=counts.num_unsure,
        num_alarms=counts.num_alarms if alarms else None,
        images_per_s=round(images_per_s, 1),
        table=out / "predictions.parquet",
        page=page,
        sequences=tuple(found),
        class_folders=_lay_out(job, by_key),
    )


def _name(job: _Job) -> str:
    info = job.predictor.info
    name = f"{info.name} {info.version}".strip()
    return f"{name} ({job.predictor.checksum[:12]})" if name else job.predictor.checksum[:12]


def _lay_out(job: _Job, by_key: dict[str, Item]) -> Path | None:
    if job.request.sort is None:
        return None
    folder = job.request.out / _SORTED
    max_bytes = job.predictor.info.preprocessing.max_bytes

    def read(item: Item) -> bytes:
        return open_root(item.root).read(item.name, max_bytes)

    class_folders.lay_out(_labelled(job, by_key), job.request.sort, folder, read)
    return folder


def _labelled(job: _Job, by_key: dict[str, Item]) -> Iterator[tuple[Item, str]]:
    """Yields the images that have a prediction as a whole, with their labels."""
    for part in job.parts.read(by_key):
        columns = (part.table[name].to_pylist() for name in ("key", "label", "x", "sequence"))
        for key, label, x, sequence in zip(*columns, strict=True):
            item = by_key[key]
            is_part = x is not None or sequence == item.path
            if label is not None and not is_part:
                yield item, label
