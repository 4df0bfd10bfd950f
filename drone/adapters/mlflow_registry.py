"""The model registry: versions, and the aliases `champion` and `previous`."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from drone.adapters.mlflow_model import logged_model, read_json
from drone.adapters.mlflow_tracking import FAILURES, reopened
from drone.errors import RunError

DEFAULT_NAME = "drone-classifier"
CHAMPION, PREVIOUS = "champion", "previous"


@dataclass(frozen=True)
class Holder:
    """The version that holds an alias."""

    version: str
    run_id: str


def holder(name: str, alias: str) -> Holder | None:
    """Who holds an alias of a registered model; None if nobody does."""
    try:
        found = MlflowClient().get_model_version_by_alias(name, alias)
    except MlflowException:
        return None
    return Holder(version=str(found.version), run_id=str(found.run_id))


def version_of(name: str, run_id: str) -> str | None:
    """The version that a run's model is registered as, if it is."""
    found = MlflowClient().search_model_versions(f"name = '{name}'")
    versions = [int(item.version) for item in found if item.run_id == run_id]
    return str(max(versions)) if versions else None


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
    client.set_registered_model_alias(name, CHAMPION, previous.version)
    client.set_registered_model_alias(name, PREVIOUS, champion.version)
    return previous, champion


def attach(name: str, version: str, run_id: str, decision: Mapping[str, Any]) -> None:
    """Keeps a decision with the version (as tags) and its run (as a document)."""
    client = MlflowClient()
    client.set_model_version_tag(
        name, version, "gate", "passed" if decision["passed"] else "failed"
    )
    for rule in decision["rules"]:
        tag = f"gate.{rule['name'].replace(' ', '_')}"
        client.set_model_version_tag(name, version, tag, rule["figures"])
    with reopened(run_id) as run:
        run.log_text(json.dumps(decision, indent=1), f"promotion/{name}-v{version}.json")


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
