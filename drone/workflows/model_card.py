"""The model card of a registered version: collects what was logged, and stores the page."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drone.collect import provenance
from drone.config import differing, flatten, to_dict
from drone.data.dataset import Dataset
from drone.errors import ConfigError, DataError
from drone.evaluation.model_card import UNKNOWN_LICENCE, ModelFacts, render
from drone.labels import ClassSet
from drone.names import key
from drone.presets import get_preset
from drone.tracking import artifacts, runs
from drone.tracking.artifacts import MissingArtifactError
from drone.tracking.runs import Run
from drone.workflows.run_spec import read_spec

LICENCES_FILE = "licences.json"
"""Artifact of a run: number of images of its data set by licence."""

_WEIGHTS_LICENCES = {
    "imagenet": "torchvision's, BSD 3-Clause; trained on ImageNet, whose images are for research",
    "none": "none: random",
}
"""Licences of starting weights, as their publishers state them."""


def count_licences(dataset: Dataset) -> dict[str, int]:
    """Returns the number of kept images by licence, as the raw folders' provenance states them."""
    kept = dataset.manifest[dataset.manifest["kept"]]
    by_md5: dict[str, str] = {}
    for root in kept["root"].unique():
        try:
            records = provenance.latest_records(Path(root))
        except (DataError, OSError):  # A card is no reason to stop for a damaged line.
            continue
        by_md5 |= {record.md5: record.licence for record in records.values() if record.md5}
    licences = (by_md5.get(md5) or UNKNOWN_LICENCE for md5 in kept["md5"])
    return dict(Counter(licences).most_common())


def card_artifact(name: str, version: str) -> str:
    """Returns the artifact of a run that is the card of a version."""
    return f"model_card/{key(name)}-v{version}.html"


def log_card(
    name: str,
    version: str,
    run: Run,
    classes: ClassSet,
    metrics: Mapping[str, Any],
    decision: Mapping[str, Any],
) -> str:
    """Makes the card of a version and stores it with its run.

    Args:
        name: Name of the registered model.
        version: The version.
        run: Run that the version comes from.
        classes: Its classes.
        metrics: Content of metrics.json of its evaluation on the test split.
        decision: The gate's decision.

    Returns:
        The artifact.
    """
    facts = ModelFacts(
        name=name,
        version=version,
        classes=classes,
        training=_training_facts(run),
        images=artifacts.images_of(run.info.run_id),
        licences=_licences(run),
        metrics=metrics,
        decision=decision,
    )
    artifact = card_artifact(name, version)
    with runs.reopen_run(run.info.run_id) as reopened:
        reopened.log_text(render(facts), artifact)
    return artifact


def _licences(run: Run) -> Mapping[str, int]:
    try:
        return artifacts.read_json(run.info.run_id, LICENCES_FILE)
    except MissingArtifactError:
        return {UNKNOWN_LICENCE: len(artifacts.images_of(run.info.run_id))}


def _training_facts(run: Run) -> dict[str, str]:
    tags, spec = run.data.tags, read_spec(run.info.run_id)
    pretrained = tags.get("pretrained", "")
    facts = {
        "run": f"{run.info.run_name} ({run.info.run_id})",
        "commit": tags.get("commit", "unknown"),
        "data set": f"{spec.data}, fingerprint {tags.get('fingerprint', 'unknown')}",
        "starting weights": f"{pretrained}, SHA-256 {tags.get('weights_sha256') or 'none'}",
        "licence of the weights": _WEIGHTS_LICENCES.get(pretrained, UNKNOWN_LICENCE),
        "preset": spec.config.preset,
        "epochs": str(spec.config.last_epoch),
        "seed": str(spec.config.seed),
        "class weights": tags.get("class_weights", "none"),
    }
    changed = _changed_settings(spec.config)
    return facts | ({"settings that differ from the preset": changed} if changed else {})


def _changed_settings(config: Any) -> str:
    try:
        preset = to_dict(get_preset(config.preset))
    except ConfigError:  # A preset of an earlier version of the project.
        return ""
    changes = flatten(differing(to_dict(config), preset))
    return ", ".join(f"{name} {value}" for name, value in changes.items() if name != "seed")
