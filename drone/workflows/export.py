"""Exports a run's model or a registered one: checks, calibrates and describes it."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from drone.commands import command
from drone.data.dataset import Dataset
from drone.errors import ConfigError, DataError, RunError
from drone.evaluation import parity
from drone.evaluation.batch_inference import predict_outputs_in_batches
from drone.evaluation.calibration import Calibration
from drone.evaluation.latency import measure_latency_ms
from drone.evaluation.operating_point import Alarms
from drone.evaluation.parity import Parity
from drone.files import locked
from drone.model import export, quantization
from drone.project import ROOT
from drone.serving.checksum import INFO_FILE, file_sha256
from drone.serving.predictor import Predictor
from drone.serving.roles import decide
from drone.storage import checkpoints, dataset_cache
from drone.tracking import artifacts, runs
from drone.tracking.model import ModelRef, fetch_onnx, resolve_model
from drone.workflows import alarms
from drone.workflows.display import SILENT, Display
from drone.workflows.model_card import card_artifact
from drone.workflows.model_logging import (
    ONNX_FILE,
    add_reference,
    calibrate,
    load_best_model,
)
from drone.workflows.moved import open_recorded
from drone.workflows.requests import ExportRequest
from drone.workflows.run_spec import RunSpec, check_fingerprint, read_spec

INT8_FILE, REPORT_FILE, CARD_FILE = "model.int8.onnx", "export.json", "model_card.html"
_MAX_ACCURACY_LOSS = 0.005
"""Validation accuracy that quantization may cost."""

_NUM_CALIBRATION_IMAGES = 128
"""Training images that the ranges of quantized activations are measured on."""


@dataclass(frozen=True)
class Quantization:
    """Cost and gain of quantization to 8-bit integers."""

    accuracy_int8: float
    accuracy_fp32: float
    """On validation."""

    speedup: float
    """Latency of fp32 divided by that of int8, one thread, on this machine."""

    size_mb: float
    kept: bool


@dataclass(frozen=True)
class ExportResult:
    """The result of an export."""

    out: Path
    page: Path | None
    info: dict[str, Any]
    """Content of model.json."""

    parity: Parity | None
    """None if it was not checked."""

    quantization: Quantization | None
    """None if it was not tried."""

    alarms: Alarms | None
    """What raises an alarm on the test split; None for a model without alarms."""

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return {
            "out": str(self.out),
            **self.info,
            "parity": asdict(self.parity) if self.parity else None,
            "int8": asdict(self.quantization) if self.quantization else None,
            "alarms": self.alarms.as_dict() if self.alarms else None,
        }


def export_model(request: ExportRequest, display: Display = SILENT) -> ExportResult:
    """Writes model.onnx, model.json, export.json, and model.int8.onnx if it is worth it.

    Of a registered version there is model_card.html too.

    Raises:
        RunError: The exported model's predictions differ from the trained one's, or it cannot be
            checked since the run's checkpoint is gone.
        DroneError: Anything else that the user can fix.
    """
    runs.connect(request.experiment)
    model = resolve_model(request.model, request.run)
    spec = read_spec(model.run_id)
    if request.int8 and spec.config.model.mixed:
        raise ConfigError(
            "--int8 cannot quantize a model of mixed resolutions: its graph selects a resizer by "
            "image size, which the quantizer does not support. Export it without --int8."
        )
    dataset = _open_dataset(request, model, spec, display)
    with _writing(request.out), tempfile.TemporaryDirectory() as temporary:
        # Built aside and moved at the end, so that --out never holds a model that failed a check.
        building = Path(temporary)
        target = building / ONNX_FILE
        # A copy: name, version and calibration are added to its metadata.
        shutil.copy(fetch_onnx(model, building / "fetched"), target)
        logged = Predictor(target)
        if request.data is None:
            check_fingerprint(str(model), logged.info.fingerprint, spec, dataset)
        elif logged.info.fingerprint != dataset.fingerprint:
            raise RunError(
                f"{model} was trained on the data set {logged.info.fingerprint[:12]}, and --data "
                f"{request.data} is {dataset.fingerprint[:12]}. Give the one that it was "
                f"trained on."
            )
        alarms.check_request(request, spec.config, logged.info)
        measured = _check_parity(request, spec, logged, dataset, building, display)
        calibrated = _calibrate(request, spec, logged, dataset)
        identity = {"name": model.name, "version": model.version}
        export.add_metadata(target, {**identity, **calibrated.as_metadata()})
        add_reference(target, spec.config, dataset)
        if request.alarm_recall is not None:
            alarms.add_threshold(target, dataset, request.alarm_recall)
        on_test = alarms.test_alarms(Predictor(target), dataset)
        quantized = None
        if request.int8:
            display.show("Trying 8-bit integers ...")
            quantized = _quantize(target, building / INT8_FILE, dataset)
            add_reference(building / INT8_FILE, spec.config, dataset)
        with_int8 = bool(quantized and quantized.kept)
        names = [ONNX_FILE, *([INT8_FILE] if with_int8 else [])]
        info = Predictor(target).info.to_dict()
        info["sha256"] = {name: file_sha256(building / name) for name in names}
        _write_json(building / INFO_FILE, info)
        report = {
            **{name: info[name] for name in ("name", "version", "fingerprint")},
            "run_id": model.run_id,
            "parity": asdict(measured) if measured else None,
            "int8": asdict(quantized) if quantized else None,
            "alarms": on_test.as_dict() if on_test else None,
        }
        _write_json(building / REPORT_FILE, report)
        card = _fetch_card(model, building / "card")
        _install(building, request.out, names)
        if card:
            shutil.copy(card, request.out / CARD_FILE)
    if request.page:
        _write_page(request.page, request.out)
    return ExportResult(request.out, request.page, info, measured, quantized, on_test)


def _fetch_card(model: ModelRef, folder: Path) -> Path | None:
    """Returns the model card of a registered version; None if it has none."""
    if not model.version:
        return None
    try:
        artifact = card_artifact(model.name, model.version)
        return artifacts.download(model.run_id, artifact, folder)
    except artifacts.MissingArtifactError:
        return None


def _calibrate(
    request: ExportRequest, spec: RunSpec, logged: Predictor, dataset: Dataset
) -> Calibration:
    calibrated = calibrate(logged, spec.config, dataset, request.unsure_below)
    if request.known_above is not None:
        calibrated = replace(calibrated, known_above=request.known_above)
    return replace(calibrated, alarm_above=request.alarm_above)


def _open_dataset(
    request: ExportRequest, model: ModelRef, spec: RunSpec, display: Display
) -> Dataset:
    at_bins = spec.config.model.mixed
    if request.data:
        return dataset_cache.open_at(request.data, notify=display.show, at_bins=at_bins)
    advice = command("export", run=model.run_id, out=request.out, data="DATASET")
    return open_recorded(spec.data, str(model), advice, display.show, at_bins=at_bins)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Holds the lock of a folder for exports."""
    folder = out.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock"), f"The export {out}"):
        yield


def _check_parity(
    request: ExportRequest,
    spec: RunSpec,
    logged: Predictor,
    dataset: Dataset,
    building: Path,
    display: Display,
) -> Parity | None:
    """Compares the exported with the trained model; None if that is gone and --unchecked is set."""
    try:
        stored = checkpoints.newest(spec.storage, display.warn)
    except RunError:  # Of another version.
        if not request.unchecked:
            raise
        stored = None
    if stored is None:
        if request.unchecked:
            return None
        raise RunError(
            f"The trained weights are no longer in {spec.storage}, so the exported model cannot be "
            f"compared with them. Restore the checkpoint, or export with --unchecked."
        )
    display.show("Comparing with the trained model on the test split ...")
    folder = checkpoints.fetch(stored.location, building / "checkpoint")
    trained = load_best_model(folder, spec.config, len(dataset.classes))
    measured = parity.measure(trained, logged, dataset.split("test"))
    parity.check(measured)
    return measured


def _quantize(source: Path, target: Path, dataset: Dataset) -> Quantization:
    """Quantizes a model, and judges whether the result is worth keeping."""
    train, validation = dataset.split("train"), dataset.split("validation")
    # A fixed choice, so that the same model is quantized to the same file.
    chosen = np.random.default_rng(0).permutation(len(train))[:_NUM_CALIBRATION_IMAGES]
    batches = [train.gather(chosen[start : start + 8]) for start in range(0, len(chosen), 8)]
    quantization.to_int8(source, target, batches)
    # One thread each, as a server under load uses.
    fp32, int8 = Predictor(source, threads=1), Predictor(target, threads=1)
    outputs_fp32, outputs_int8 = (
        predict_outputs_in_batches(predictor, validation.sides_N, validation.gather)
        for predictor in (fp32, int8)
    )
    accuracy_fp32, accuracy_int8 = (
        float((decide(outputs.probs_NK, dataset.classes) == validation.labels_N).mean())
        for outputs in (outputs_fp32, outputs_int8)
    )
    # Rounded features have other scores; as many images as before must count as known.
    unknown = float((outputs_fp32.known_N < fp32.info.known_above).mean())
    known_above = float(np.quantile(outputs_int8.known_N, unknown))
    export.add_metadata(target, {"known_above": repr(known_above)})
    if fp32.info.alarm_above is not None:
        # Likewise, as many of the drones must raise an alarm.
        scores = alarms.validation_scores(fp32, dataset)
        if recall := scores.alarms(fp32.info.alarm_above).drones.value:
            alarms.add_threshold(target, dataset, recall)
    speedup = measure_latency_ms(fp32) / measure_latency_ms(int8)
    return Quantization(
        accuracy_int8=accuracy_int8,
        accuracy_fp32=accuracy_fp32,
        speedup=speedup,
        size_mb=target.stat().st_size / 1e6,
        kept=accuracy_int8 >= accuracy_fp32 - _MAX_ACCURACY_LOSS and speedup > 1,
    )


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _install(building: Path, out: Path, models: Sequence[str]) -> None:
    """Moves the models and their descriptions to their folder; each appears there complete."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (INT8_FILE, CARD_FILE):  # Of an earlier export, of another model perhaps.
        (out / name).unlink(missing_ok=True)
    for name in (*models, INFO_FILE, REPORT_FILE):
        # First under another name: between file systems a move is a copy, which can be cut short.
        shutil.move(building / name, out / f"{name}.tmp")
        (out / f"{name}.tmp").rename(out / name)


def _write_page(page: Path, exported: Path) -> None:
    """Writes the web page with the model in it, ready for any web server."""
    web = ROOT / "web"
    if not web.is_dir():
        raise DataError(f"There is no page in {web}; run from a complete checkout of the project.")
    # The file that marks a folder as an earlier page, and that its owner may have edited.
    has_config = (page / "config.json").is_file()
    if page.exists() and any(page.iterdir()) and not has_config:
        raise DataError(f"{page} holds something else; set --page to a new folder.")
    # The site's own configuration is never overwritten.
    ignored = shutil.ignore_patterns(*(["config.json"] if has_config else []))
    shutil.copytree(web, page, ignore=ignored, dirs_exist_ok=True)
    (page / "model").mkdir(exist_ok=True)
    for name in (ONNX_FILE, INFO_FILE):
        shutil.copy(exported / name, page / "model" / name)
