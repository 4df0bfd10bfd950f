"""Registers a run's model and makes it champion, if it passes the gate."""

import datetime
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from drone.commands import command
from drone.errors import RunError
from drone.evaluation.gate import Contender, apply_gate, markdown
from drone.evaluation.latency import measure_latency_ms
from drone.evaluation.limits import Limits
from drone.evaluation.metrics import ALARM_COLUMN
from drone.names import check_model_name
from drone.serving.predictor import Predictor
from drone.storage import dataset_cache
from drone.tracking import artifacts, registry, runs
from drone.tracking.model import ModelRef, fetch_onnx, resolve_model, run_of
from drone.tracking.registry import CHAMPION, PREVIOUS
from drone.tracking.runs import Run
from drone.workflows import model_card
from drone.workflows.display import SILENT, Display
from drone.workflows.evaluated_images import test_split_name
from drone.workflows.evaluation import test_result
from drone.workflows.run_spec import check_fingerprint, read_spec

_COLUMNS = ["path", "true", "predicted", "right", "confidence"]
"""Columns of predictions.csv that the gate compares."""


@dataclass(frozen=True)
class PromotionResult:
    """The outcome of a promotion."""

    name: str
    """Of the registered model."""

    run_id: str
    run_name: str
    version: str | None
    """None in a dry run."""

    promoted: bool
    """Whether the run's model is the champion now."""

    document: dict[str, Any] | None
    """The gate's decision; None if the model was the champion already."""

    @property
    def message(self) -> str:
        """The outcome in a sentence."""
        if self.version is None:
            return "Nothing was changed (--dry-run)."
        if self.document is None:
            return f"{self.run_name} is the champion of {self.name} already."
        if self.promoted:
            return f"{self.run_name} is now models:/{self.name}@champion (version {self.version})."
        why = registry.promote_command(self.name, why=self.version)
        failed = [rule["name"] for rule in self.document["rules"] if not rule["passed"]]
        return (
            f"{self.run_name} is registered as version {self.version} of {self.name}, but did not "
            f"pass the gate ({', '.join(failed)}); the champion stays. The decision again: {why}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return {
            **(self.document or {}),
            "name": self.name,
            "run_id": self.run_id,
            "version": self.version,
            "promoted": self.promoted,
        }


def promote(
    id_or_name: str,
    name: str,
    limits: Limits,
    *,
    dry_run: bool = False,
    experiment: str = runs.DEFAULT_EXPERIMENT,
    display: Display = SILENT,
) -> PromotionResult:
    """Applies the gate to a run, registers it, and makes it champion if it passes.

    Args:
        id_or_name: Id or name of the run.
        name: Name of the registered model.
        limits: Limits of the gate.
        dry_run: Whether to decide only, and change nothing.
        experiment: Experiment in MLflow.
        display: Shows each rule of the gate.

    Raises:
        RunError: The run or the champion has not been evaluated, or one of them was trained on the
            test images.
    """
    check_model_name(name, "--name")
    runs.connect(experiment)
    run = runs.find_run(id_or_name)
    run_id, run_name = run.info.run_id, str(run.info.run_name)
    champion_version = registry.version_by_alias(name, CHAMPION)
    # It would be compared with itself.
    if champion_version is not None and champion_version.run_id == run_id:
        return PromotionResult(name, run_id, run_name, champion_version.version, True, None)
    fingerprint = run.data.tags.get("fingerprint", "")
    model = resolve_model(None, run_id)
    candidate = _contender(model, run, fingerprint, f"run {run_name}")
    if candidate is None:
        who = f"Run {run_name} has not been evaluated on its test split: it"
        data = _where_to_evaluate(run_id, fingerprint, who)
        raise RunError(
            f"Run {run_name} has not been evaluated on its test split. First: "
            f"{command('evaluate', run=run_id, data=data)}"
        )
    # Of its own data set too: splits that overlap would make any model look good.
    _check_test_images_unseen(run_id, run_id, f"Run {run_name}")
    champion = None
    if champion_version is not None:
        champion = _champion(name, champion_version, run_id, fingerprint)
    document = {
        **apply_gate(candidate, champion, limits).as_dict(),
        "name": name,
        "candidate": candidate.name,
        "candidate_run_id": run_id,
        "champion": champion.name if champion else None,
        "champion_run_id": champion_version.run_id if champion_version else None,
        "fingerprint": fingerprint,
        "limits": vars(limits),
        "when": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M UTC}",
    }
    _show_rules(document, display)
    if dry_run:
        return PromotionResult(name, run_id, run_name, None, False, document)
    tags = {"fingerprint": fingerprint, "pretrained": run.data.tags.get("pretrained", "")}
    # Registered even if it fails the gate: the decision is stored with the version.
    version = registry.register(name, run_id, tags)
    document["version"] = version
    # Before the promotion: a champion must always have a decision to look up.
    registry.record_gate_decision(name, version, run_id, document, markdown(document))
    card = model_card.log_card(name, version, run, candidate.classes, candidate.metrics, document)
    display.show(f"Model card: {card} of run {run_name}")
    if document["passed"]:
        registry.promote(name, version)
    return PromotionResult(name, run_id, run_name, version, document["passed"], document)


def _show_rules(document: Mapping[str, Any], display: Display) -> None:
    """Shows each rule of a gate decision."""
    for rule in document["rules"]:
        verdict = "pass" if rule["passed"] else "FAIL"
        display.show(f"{verdict}  {rule['name']}: {rule['figures']}")


def explain(
    name: str, version: str, *, experiment: str = runs.DEFAULT_EXPERIMENT, display: Display = SILENT
) -> dict[str, Any]:
    """Returns the gate's decision on a version, and shows it rule by rule.

    Raises:
        RunError: There is no such version, or the gate was never applied to it.
    """
    check_model_name(name, "--name")
    runs.connect(experiment)
    document = registry.read_gate_decision(name, version)
    _show_rules(document, display)
    return document


def rollback(
    name: str, *, dry_run: bool = False, experiment: str = runs.DEFAULT_EXPERIMENT
) -> tuple[ModelRef | None, ModelRef | None]:
    """Makes the previous champion the champion again.

    Args:
        name: Name of the registered model.
        dry_run: Whether to change nothing.
        experiment: Experiment in MLflow.

    Returns:
        The version that is, or in a dry run would be, champion, and the version that it replaces.

    Raises:
        RunError: There is no previous champion.
    """
    check_model_name(name, "--name")
    runs.connect(experiment)
    if dry_run:
        previous = registry.version_by_alias(name, PREVIOUS)
        return previous, registry.version_by_alias(name, CHAMPION)
    return registry.rollback(name)


def _contender(model: ModelRef, run: Run, fingerprint: str, name: str) -> Contender | None:
    """Returns a model with its results on the test split of a data set.

    Args:
        model: The model, of a run or of the registry.
        run: Its run.
        fingerprint: Fingerprint of the data set.
        name: Name to show to the user.

    Returns:
        None if the model was not evaluated there.

    Raises:
        RunError: The results are damaged, or the model is not the one that was logged.
    """
    run_id, own = model.run_id, run.data.tags.get("fingerprint", "") == fingerprint
    metrics = test_result(run_id, fingerprint, own)
    if metrics is None:
        return None
    # Infinite where it was not measured, so that such a model cannot pass the rule.
    onnx_difference = run.data.metrics.get("model/onnx_max_difference", math.inf)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        artifact = f"evaluation/{test_split_name(fingerprint, own)}/predictions.csv"
        table = artifacts.download(run_id, artifact, folder)
        onnx_file = fetch_onnx(model, folder / "model")
        try:
            predictions = _read_predictions(table)
        except (OSError, ValueError, KeyError) as error:
            raise artifacts.damaged(run_id, artifact, error) from error
        predictor = Predictor(onnx_file)
        return Contender(
            name=name,
            predictions=predictions,
            metrics=metrics,
            classes=predictor.info.classes,
            onnx_difference=float(onnx_difference),
            size_mb=onnx_file.stat().st_size / 1e6,
            # Measured here for both models: latencies of other machines cannot be compared.
            latency_ms=_latency_ms(predictor, metrics),
        )


def _read_predictions(table: Path) -> pd.DataFrame:
    # A class may be called NA or 01, which pandas would read as missing or as a number.
    text = dict.fromkeys(("path", "true", "predicted"), str)
    values = pd.read_csv(table, keep_default_na=False, na_values={ALARM_COLUMN: [""]}, dtype=text)
    return values[[*_COLUMNS, *([ALARM_COLUMN] if ALARM_COLUMN in values else [])]]


def _latency_ms(predictor: Predictor, metrics: Mapping[str, Any]) -> float:
    """Returns the time per image; for mixed resolutions, the mean over the images' sizes."""
    rows = metrics.get("by_size")
    if not rows:
        return measure_latency_ms(predictor)
    total_ms = sum(
        row["images"] * measure_latency_ms(predictor, int(row["side_px"])) for row in rows
    )
    return float(total_ms / sum(row["images"] for row in rows))


def _champion(name: str, version: ModelRef, candidate_run_id: str, fingerprint: str) -> Contender:
    """Returns the champion with its results on the candidate's test split."""
    run = run_of(version)
    trained_on = run.data.tags.get("fingerprint", "")
    own = trained_on == fingerprint
    champion = _contender(version, run, fingerprint, f"the champion (version {version.version})")
    if champion is None:
        who = f"The champion of {name} has not been evaluated as the candidate has: the candidate"
        data = _where_to_evaluate(candidate_run_id, fingerprint, who)
        differ = "" if own else f" (it was trained on {trained_on[:12] or 'an unknown data set'})"
        first = command("evaluate", model=f"models:/{name}@{CHAMPION}", data=data)
        raise RunError(
            f"The champion of {name} (version {version.version}) has not been evaluated on the "
            f"candidate's data set {fingerprint[:12]}{differ}, so they cannot be compared. First: "
            f"{first}"
        )
    if not own:
        # Another data set may have put these very images into its training split.
        who = f"The champion (version {version.version})"
        _check_test_images_unseen(version.run_id, candidate_run_id, who)
    return champion


def _where_to_evaluate(run_id: str, fingerprint: str, who: str) -> str:
    """Returns where the data set of a run is; a placeholder if it has moved.

    Raises:
        DataError: It has changed, so that the test split of the run is no more.
    """
    spec = read_spec(run_id)
    if spec.has_lost_data:
        return "DATASET"
    # Else the advice would lead to scores on another test split, and back here.
    check_fingerprint(who, fingerprint, spec, dataset_cache.open_at(spec.data))
    return spec.data


def _check_test_images_unseen(run_id: str, tested_run_id: str, who: str) -> None:
    """Fails if a run was trained or selected on the test images of another run's data set."""
    images = artifacts.images_of(tested_run_id)
    tested = images.loc[images["split"] == "test", "content"]
    seen = int(tested.isin(artifacts.training_contents(run_id)).sum())
    if seen:
        raise RunError(
            f"{who} was trained or selected on {seen} of the {len(tested)} test images, so a "
            f"comparison on them would be worthless. Train both on the same data set, or promote "
            f"under another --name."
        )
