"""From a run or a registered model to the files that answer: checked, calibrated, described."""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from drone.adapters import dataset_cache, mlflow_model, storage, training_run
from drone.adapters.mlflow_model import MOST_DIFFERENCE, Named
from drone.data.dataset import Dataset, Split
from drone.errors import RunError
from drone.evaluation.asking import ask
from drone.model import export, mobilenet, quantize
from drone.serving.predictor import Predictor
from drone.serving.timing import milliseconds
from drone.training import checkpoint

ONNX_FILE, INT8_FILE, FACTS_FILE, REPORT_FILE = (
    "model.onnx",
    "model.int8.onnx",
    "model.json",
    "export.json",
)
MOST_LOST = 0.005
"""Accuracy on validation that int8 may cost."""

_CALIBRATION = 128


@dataclass(frozen=True)
class Parity:
    """How the exported model answers beside the trained one."""

    pictures: int
    max_difference: float
    """Of a probability."""

    same_top1: float
    """Share of pictures with the same most probable class."""


@dataclass(frozen=True)
class Integers:
    """What 8-bit integers cost and bring."""

    accuracy: float
    accuracy_fp32: float
    """On validation."""

    speedup: float
    """Milliseconds an answer of fp32 over those of int8, one thread, on this machine."""

    mb: float
    kept: bool


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    facts: dict[str, Any]
    parity: Parity | None
    integers: Integers | None


def write(
    named: Named,
    out: Path,
    data: str | None,
    unsure_below: float | None,
    *,
    unchecked: bool,
    say: Callable[[str], None],
) -> Exported:
    """Writes model.onnx, model.json and export.json, and model.int8.onnx if it is worth it.

    Args:
        named: the model.
        out: folder, made if it is not there.
        data: data set that it was trained on; None takes the place that the run knows.
        unsure_below: see `Predictor.unsure_below`; None chooses it on validation pictures.
        unchecked: goes on without the trained weights, if they are gone.
        say: hears what is being done.

    Raises:
        RunError: the exported model does not answer as the trained one does, or it cannot be
            checked since the run's checkpoint is gone.
    """
    with tempfile.TemporaryDirectory() as temporary:
        building = Path(temporary)
        plan = training_run.plan_of(named.run_id)
        dataset = dataset_cache.open_at(data or plan.data, say=say)
        if plan.config.model.mixed:
            dataset = dataset.at_bins()
        target = building / ONNX_FILE
        shutil.copy(mlflow_model.fetch_onnx(named.run_id, building / "fetched"), target)
        plain = Predictor(target)
        trained_on = plain.metadata.get("fingerprint", "")
        if trained_on != dataset.fingerprint:
            raise RunError(
                f"The model was trained on the data set {trained_on[:12]}, "
                f"and {dataset.folder} is {dataset.fingerprint[:12]}. Name the right one: --data."
            )
        say("Comparing with the trained model on the test split ...")
        parity = _parity(plan, plain, dataset, building, unchecked=unchecked)
        # Models of earlier versions have not been calibrated.
        calm = mlflow_model.calibration_of(plain, dataset.split("validation"), unsure_below)
        export.add_facts(target, {"name": named.name, "version": named.version, **calm})
        integers = None
        if not plan.config.model.mixed:  # The quantiser knows no graph that chooses its way.
            say("Trying 8-bit integers ...")
            integers = _integers(target, building / INT8_FILE, dataset)
        facts = Predictor(target).facts
        (building / FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
        report = {
            **{name: facts[name] for name in ("name", "version", "fingerprint")},
            "run_id": named.run_id,
            "parity": asdict(parity) if parity else None,
            "int8": asdict(integers) if integers else None,
        }
        (building / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        out.mkdir(parents=True, exist_ok=True)
        (out / INT8_FILE).unlink(missing_ok=True)
        names = [
            ONNX_FILE,
            FACTS_FILE,
            REPORT_FILE,
            *([INT8_FILE] if integers and integers.kept else []),
        ]
        for name in names:
            shutil.move(building / name, out / f"{name}.tmp")
            (out / f"{name}.tmp").rename(out / name)
    return Exported(out, facts, parity, integers)


def _parity(
    plan: training_run.Plan,
    plain: Predictor,
    dataset: Dataset,
    building: Path,
    *,
    unchecked: bool,
) -> Parity | None:
    stored = storage.newest(plan.storage)
    if stored is None:
        if unchecked:
            return None
        raise RunError(
            f"The trained weights are no longer in {plan.storage}, so the exported model cannot be "
            f"compared with them. Bring the checkpoint back, or export with --unchecked."
        )
    folder = storage.fetch(stored.place, building / "checkpoint")
    model = mobilenet.build(plan.config.model, len(dataset.classes), 0, None).eval()
    model.load_state_dict(checkpoint.load_best(folder))
    served = export.Served(model).eval()
    test = dataset.split("test")
    with torch.no_grad():
        expected_NK = ask(
            lambda pixels_NHWC: served(torch.from_numpy(pixels_NHWC)).numpy(),
            test.sides_N,
            test.gather,
        )
    found_NK = _answers(plain, test)
    parity = Parity(
        pictures=len(test),
        max_difference=float(np.abs(expected_NK - found_NK).max()),
        same_top1=float((expected_NK.argmax(axis=1) == found_NK.argmax(axis=1)).mean()),
    )
    if parity.max_difference > MOST_DIFFERENCE or parity.same_top1 < 1:
        raise RunError(
            f"The exported model does not answer as the trained one does: probabilities differ by "
            f"up to {parity.max_difference:.1e} (at most {MOST_DIFFERENCE:.0e}), the class is the "
            f"same for {parity.same_top1:.2%} of {parity.pictures} test pictures. Nothing was "
            f"written; train again with this version, which exports anew."
        )
    return parity


def _answers(predictor: Predictor, split: Split) -> NDArray[np.float32]:
    """What the network says of a split, without temperature, (N, K)."""
    return ask(predictor.uncalibrated, split.sides_N, split.gather)


def _integers(source: Path, target: Path, dataset: Dataset) -> Integers:
    """Quantises, and says whether the result is worth keeping."""
    train, validation = dataset.split("train"), dataset.split("validation")
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(train))[:_CALIBRATION]
    batches = [train.gather(chosen[at : at + 8]) for at in range(0, len(chosen), 8)]
    quantize.to_int8(source, target, batches)
    fp32, int8 = Predictor(source, threads=1), Predictor(target, threads=1)
    accuracy, lost = (
        float((_answers(one, validation).argmax(axis=1) == validation.labels_N).mean())
        for one in (fp32, int8)
    )
    speedup = milliseconds(fp32) / milliseconds(int8)
    kept = lost >= accuracy - MOST_LOST and speedup > 1
    return Integers(lost, accuracy, speedup, target.stat().st_size / 1e6, kept)
