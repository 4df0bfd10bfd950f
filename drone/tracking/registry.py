"""The model registry: versions, and the aliases `champion` and `previous`."""

import json
from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from drone.commands import command
from drone.errors import RunError, TrackingError
from drone.names import key
from drone.tracking.artifacts import MissingArtifactError, read_json
from drone.tracking.failures import FAILURES, first_line
from drone.tracking.model import (
    CHECKSUM_TAG,
    ModelRef,
    describe_registered,
    logged_model,
    model_ref,
    name_filter,
)
from drone.tracking.runs import reopen_run

DEFAULT_NAME = "drone-classifier"
CHAMPION, PREVIOUS = "champion", "previous"

_NO_SUCH_ALIAS = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's error codes where there is no such model, and where the model has no such alias."""


def version_by_alias(name: str, alias: str) -> ModelRef | None:
    """Returns the version of a registered model that has an alias; None if no version has it.

    Raises:
        TrackingError: The registry does not answer.
    """
    try:
        entry = MlflowClient().get_model_version_by_alias(name, alias)
    except FAILURES as error:
        # Any other error must not count as "no champion", which every candidate would beat.
        if getattr(error, "error_code", None) in _NO_SUCH_ALIAS:
            return None
        raise TrackingError(
            f"Cannot read which version of {name} is {alias}, so nothing was changed: "
            f"{first_line(error)}."
        ) from error
    return model_ref(entry)


def version_of_run(name: str, run_id: str) -> str | None:
    """Returns the version that a run's model is registered as, or None."""
    entries = MlflowClient().search_model_versions(name_filter(name))
    # As numbers: as text, 10 would come before 9.
    versions = [int(entry.version) for entry in entries if entry.run_id == run_id]
    return str(max(versions)) if versions else None


def register(name: str, run_id: str, tags: Mapping[str, str]) -> str:
    """Registers a run's model, once.

    Args:
        name: Name of the registered model, which is created if missing.
        run_id: Run whose model is registered.
        tags: Tags of the new version.

    Returns:
        The version.

    Raises:
        RunError: The run has no model.
    """
    # A promotion may be repeated; the same model must not get a second version.
    existing = version_of_run(name, run_id)
    if existing is not None:
        return existing
    logged = logged_model(run_id)
    checksum = {CHECKSUM_TAG: logged.tags.get(CHECKSUM_TAG, "")}
    try:
        entry: ModelVersion = mlflow.register_model(
            logged.model_uri, name, tags={**tags, **checksum}
        )
    except FAILURES as error:
        raise RunError(f"Cannot register run {run_id} as {name}: {first_line(error)}.") from error
    return str(entry.version)


def promote(name: str, version: str) -> None:
    """Makes a version champion and the old champion previous."""
    client = MlflowClient()
    old = version_by_alias(name, CHAMPION)
    # Previous first: a kill between the two leaves the champion as it was.
    if old is not None and old.version != version:
        client.set_registered_model_alias(name, PREVIOUS, old.version)
    client.set_registered_model_alias(name, CHAMPION, version)


def rollback(name: str) -> tuple[ModelRef, ModelRef]:
    """Exchanges champion and previous.

    Returns:
        The new champion and the one that it replaces.

    Raises:
        RunError: There is no champion, or no previous one to go back to.
    """
    champion, previous = version_by_alias(name, CHAMPION), version_by_alias(name, PREVIOUS)
    if champion is None or previous is None:
        missing = CHAMPION if champion is None else PREVIOUS
        raise RunError(
            f"Cannot roll back {name}, which has no {missing}: {describe_registered(name)} Promote "
            f"another run: {promote_command(name, run='RUN')}"
        )
    client = MlflowClient()
    # In this order: a kill between the two leaves the champion as it was.
    client.set_registered_model_alias(name, PREVIOUS, champion.version)
    client.set_registered_model_alias(name, CHAMPION, previous.version)
    return previous, champion


def record_gate_decision(
    name: str, version: str, run_id: str, document: Mapping[str, Any], markdown: str
) -> None:
    """Attaches a gate decision to the version (tags, description) and its run (artifacts).

    Args:
        name: Name of the registered model.
        version: Version that was judged.
        run_id: Run that the version comes from.
        document: "passed", and "rules" with "name", "passed" and "figures" each.
        markdown: The decision as text, for the description.
    """
    client = MlflowClient()
    gate = "passed" if document["passed"] else "failed"
    # Tags are to filter by, the description is for the UI, the artifact for promote.py --why.
    client.set_model_version_tag(name, version, "gate", gate)
    for rule in document["rules"]:
        tag = f"gate.{rule['name'].replace(' ', '_')}"
        verdict = "pass" if rule["passed"] else "FAIL"
        client.set_model_version_tag(name, version, tag, f"{verdict}: {rule['figures']}")
    client.update_model_version(name, version, description=markdown)
    with reopen_run(run_id) as run:
        artifact = _decision_artifact(name, version)
        run.log_text(json.dumps(document, indent=1), artifact)
        run.log_text(markdown, artifact.replace(".json", ".md"))


def _decision_artifact(name: str, version: str) -> str:
    return f"promotion/{key(name)}-v{version}.json"


def read_gate_decision(name: str, version: str) -> dict[str, Any]:
    """Returns the gate decision on a version.

    Raises:
        RunError: There is no such version, or the gate was never applied to it.
    """
    client = MlflowClient()
    try:
        run_id = str(client.get_model_version(name, version).run_id)
    except FAILURES as error:
        raise RunError(
            f"There is no version {version} of {name}: {describe_registered(name)}"
        ) from error
    try:
        document = read_json(run_id, _decision_artifact(name, version))
    except MissingArtifactError as error:
        raise RunError(
            f"The gate was never applied to version {version} of {name}: it was registered by "
            f"other means. {_how_to_apply_the_gate(name, version, run_id)}"
        ) from error
    if not _is_decision(document):
        raise RunError(
            f"The decision on version {version} of {name} is damaged: "
            f"{_decision_artifact(name, version)} of run {run_id} is not what was written. "
            f"Restore it from a copy; the version's description has the same figures."
        )
    return document


def _how_to_apply_the_gate(name: str, version: str, run_id: str) -> str:
    champion = version_by_alias(name, CHAMPION)
    if champion is not None and champion.run_id == run_id:
        return "It is the champion already, which is compared with no other."
    registered = version_of_run(name, run_id)
    if registered != version:
        return f"Version {registered} is of the same run: see --why {registered}."
    return f"Apply it: {promote_command(name, run=run_id)}"


def promote_command(name: str, **flags: object) -> str:
    """Returns a command that acts on a registered model.

    Args:
        name: Name of the model.
        flags: Further flags, as `commands.command` takes them.
    """
    return command("promote", **flags, name=None if name == DEFAULT_NAME else name)


def _is_decision(document: Mapping[str, Any]) -> bool:
    """Whether a document holds what is shown of a gate decision."""
    rules = document.get("rules")
    return {"passed", "candidate", "when"} <= set(document) and (
        isinstance(rules, list)
        and all(
            isinstance(rule, dict) and {"name", "passed", "figures"} <= set(rule) for rule in rules
        )
    )
