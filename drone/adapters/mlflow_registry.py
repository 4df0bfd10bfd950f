"""The model registry: versions, and the aliases `champion` and `previous`."""

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from drone.adapters.mlflow_model import fetch_onnx, logged_model, read_json
from drone.adapters.mlflow_tracking import FAILURES, download, learnt_from, pictures_of, reopened
from drone.errors import RunError, TrackingError
from drone.evaluation.gate import Contender, markdown
from drone.serving.predictor import Predictor
from drone.serving.timing import milliseconds

DEFAULT_NAME = "drone-classifier"
CHAMPION, PREVIOUS = "champion", "previous"

_NOBODY = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What MLflow answers where there is no such model, and where the model has no such alias."""


@dataclass(frozen=True)
class Holder:
    """The version that holds an alias."""

    version: str
    run_id: str


def holder(name: str, alias: str) -> Holder | None:
    """Who holds an alias of a registered model; None if nobody does.

    Raises:
        TrackingError: the registry does not say.
    """
    try:
        found = MlflowClient().get_model_version_by_alias(name, alias)
    except FAILURES as error:
        if getattr(error, "error_code", None) in _NOBODY:
            return None
        raise TrackingError(
            f"The registry does not say who is {alias} of {name}, so nothing was changed: {error}"
        ) from error
    return Holder(version=str(found.version), run_id=str(found.run_id))


def version_of(name: str, run_id: str) -> str | None:
    """The version that a run's model is registered as, if it is."""
    found = MlflowClient().search_model_versions(_named(name))
    versions = [int(item.version) for item in found if item.run_id == run_id]
    return str(max(versions)) if versions else None


def _named(name: str) -> str:
    quote = '"' if "'" in name else "'"
    if quote in name:
        raise RunError(f"{name} is no name for a model: it has quotes of both kinds.")
    return f"name = {quote}{name}{quote}"


def register(name: str, run_id: str, facts: Mapping[str, str]) -> str:
    """Registers a run's model, once.

    Args:
        name: of the registered model; made if it is not there.
        run_id: whose model.
        facts: tags of the version.

    Returns:
        The version.

    Raises:
        RunError: the run has no model.
    """
    known = version_of(name, run_id)
    if known is not None:
        return known
    uri = logged_model(run_id)
    try:
        made: ModelVersion = mlflow.register_model(uri, name, tags=dict(facts))
    except FAILURES as error:
        raise RunError(f"Run {run_id} could not be registered as {name}: {error}") from error
    return str(made.version)


def promote(name: str, version: str) -> None:
    """Makes a version champion and the old champion previous."""
    client = MlflowClient()
    old = holder(name, CHAMPION)
    if old is not None and old.version != version:
        client.set_registered_model_alias(name, PREVIOUS, old.version)
    client.set_registered_model_alias(name, CHAMPION, version)


def rollback(name: str) -> tuple[Holder, Holder]:
    """Champion and previous change places.

    Returns:
        The new champion and the one that it replaces.

    Raises:
        RunError: there is nothing to go back to.
    """
    champion, previous = holder(name, CHAMPION), holder(name, PREVIOUS)
    if champion is None or previous is None:
        missing = CHAMPION if champion is None else PREVIOUS
        raise RunError(
            f"{name} has no {missing} version, so there is nothing to go back to. Promote two "
            f"runs first."
        )
    client = MlflowClient()
    # In this order: a kill between the two leaves the champion as it was.
    client.set_registered_model_alias(name, PREVIOUS, champion.version)
    client.set_registered_model_alias(name, CHAMPION, previous.version)
    return previous, champion


def attach(name: str, version: str, run_id: str, decision: Mapping[str, Any]) -> None:
    """Keeps a decision with the version (tags, description) and its run (JSON and readable)."""
    client = MlflowClient()
    client.set_model_version_tag(
        name, version, "gate", "passed" if decision["passed"] else "failed"
    )
    for rule in decision["rules"]:
        tag = f"gate.{rule['name'].replace(' ', '_')}"
        verdict = "pass" if rule["passed"] else "FAIL"
        client.set_model_version_tag(name, version, tag, f"{verdict}: {rule['figures']}")
    readable = markdown(dict(decision))
    client.update_model_version(name, version, description=readable)
    with reopened(run_id) as run:
        run.log_text(json.dumps(decision, indent=1), _document(name, version))
        run.log_text(readable, _document(name, version).replace(".json", ".md"))


def _document(name: str, version: str) -> str:
    return f"promotion/{name}-v{version}.json"


def decision_on(name: str, version: str) -> dict[str, Any]:
    """The decision document of a version.

    Raises:
        RunError: there is no such version, or the gate was never applied to it.
    """
    client = MlflowClient()
    try:
        run_id = str(client.get_model_version(name, version).run_id)
    except FAILURES as error:
        found = client.search_model_versions(_named(name))
        known = ", ".join(sorted((str(item.version) for item in found), key=int)) or "none yet"
        raise RunError(f"{name} has no version {version}. Its versions are: {known}.") from error
    with tempfile.TemporaryDirectory() as temporary:
        try:
            return read_json(run_id, _document(name, version), Path(temporary))
        except RunError as error:
            raise RunError(
                f"The gate was never applied to version {version} of {name}: it was registered "
                f"in another way."
            ) from error


def test_result(run_id: str, fingerprint: str, own: bool) -> dict[str, Any] | None:
    """What `evaluate` said of a run on the test split of a data set; None if it was not asked.

    Args:
        run_id: of the run.
        fingerprint: of the data set.
        own: whether the run was trained on that data set.
    """
    folder = "test" if own else f"test-{fingerprint[:8]}"
    with tempfile.TemporaryDirectory() as temporary:
        try:
            return read_json(run_id, f"evaluation/{folder}/metrics.json", Path(temporary))
        except RunError:
            return None


def contender(run_id: str, fingerprint: str, own: bool, name: str) -> Contender | None:
    """What is known of a run's model on the test split of a data set.

    Args:
        run_id: of the run.
        fingerprint: of the data set.
        own: whether the run was trained on that data set.
        name: for a person.

    Returns:
        None if it was not evaluated there.
    """
    metrics = test_result(run_id, fingerprint, own)
    if metrics is None:
        return None
    folder = "test" if own else f"test-{fingerprint[:8]}"
    logged = MlflowClient().get_run(run_id).data.metrics
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        table = download(run_id, f"evaluation/{folder}/predictions.csv", place)
        onnx_file = fetch_onnx(run_id, place / "model")
        return Contender(
            name=name,
            answers=pd.read_csv(table, keep_default_na=False),
            metrics=metrics,
            onnx_difference=float(logged.get("model/onnx_max_difference", math.inf)),
            mb=onnx_file.stat().st_size / 1e6,
            ms=_milliseconds(Predictor(onnx_file), metrics),
        )


def _milliseconds(predictor: Predictor, metrics: Mapping[str, Any]) -> float:
    """An answer's time; of a model of mixed resolutions the mean over the pictures' sizes."""
    rows = metrics.get("by_size")
    if not rows:
        return milliseconds(predictor)
    total = sum(row["pictures"] * milliseconds(predictor, int(row["side_px"])) for row in rows)
    return float(total / sum(row["pictures"] for row in rows))


def seen_test_pictures(run_id: str, tested: str) -> int:
    """How many test pictures of one run another one was trained on or chosen by.

    Args:
        run_id: of the run that may have seen them.
        tested: the run whose test split it is.
    """
    other = pictures_of(tested)
    return int(other.loc[other["split"] == "test", "md5"].isin(learnt_from(run_id)).sum())
