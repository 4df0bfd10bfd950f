"""Checks a cluster, on request or before another job relies on it."""

from dataclasses import dataclass
from pathlib import Path

from drone.cluster import connection
from drone.cluster.doctor import Finding, examine
from drone.cluster.node_report import CheckRequest
from drone.commands import command
from drone.data.dataset import Dataset
from drone.errors import RunError
from drone.model import weights
from drone.model.weights import Weights
from drone.storage import dataset_cache
from drone.storage.filesystem import absolute, resolve_writable
from drone.tracking import runs
from drone.workflows.display import SILENT, Display


@dataclass(frozen=True, kw_only=True)
class ClusterCheck:
    """What is checked on every machine."""

    data: str | None
    """Folder or URI of a data set."""

    weights: str | None
    """As `weights.load` takes it."""

    storage: str
    """Folder or URI for checkpoints."""

    activation_cache: Path
    """Local folder of the activation cache, on every machine."""


def check(request: ClusterCheck, display: Display = SILENT) -> list[Finding]:
    """Checks every machine of the cluster, or this machine without one."""
    store = runs.connect()
    starting = weights.load(request.weights) if request.weights is not None else None
    storage = resolve_writable(request.storage)
    dataset = None
    if request.data:
        # Opened here first: its fingerprint is what every other machine must have.
        dataset = dataset_cache.open_at(request.data, notify=display.show)
    with connection.connected():
        return _examine(
            store, storage, request.data, dataset, starting, request.activation_cache, display
        )


def before_job(
    store: str,
    storage: str,
    data: str,
    dataset: Dataset,
    starting: Weights,
    activation_cache: Path,
    display: Display,
) -> None:
    """Checks a cluster before another job starts on it; shows nothing if all checks pass.

    Args:
        store: URI of the tracking store.
        storage: Folder or URI for checkpoints.
        data: Location of the data set.
        dataset: The same data set, opened here.
        starting: Weights that are sent to every machine.
        activation_cache: Folder on every machine.
        display: Shows what is wrong.

    Raises:
        RunError: A check fails.
    """
    # On one machine the job fails at once and says why; on a cluster, late and in some worker.
    if not connection.on_cluster():
        return
    findings = _examine(store, storage, data, dataset, starting, activation_cache, display)
    problems = [finding for finding in findings if finding.verdict != "ok"]
    for finding in problems:
        display.warn(describe(finding))
    if any(finding.verdict == "failure" for finding in problems):
        again = command("doctor", data=data, storage=storage)
        raise RunError(
            f"The cluster cannot run this job: see the failed checks above. Check it again: "
            f"{again} - or start without checking: --no-doctor"
        )


def describe(finding: Finding) -> str:
    """Returns a finding as one line."""
    machines = ", ".join(finding.machines)
    return f"{finding.check} on {machines}: {finding.message}. {finding.fix}".strip()


def _examine(
    store: str,
    storage: str,
    data: str | None,
    dataset: Dataset | None,
    starting: Weights | None,
    activation_cache: Path,
    display: Display,
) -> list[Finding]:
    request = CheckRequest(
        # As the job will reach it: through the head where machines share no disk.
        storage=connection.writable_uri(storage),
        data=connection.readable_uri(absolute(data)) if data else None,
        fingerprint=dataset.fingerprint if dataset else None,
        weights=starting,
        activation_cache=str(activation_cache),
    )
    return examine(request, store, display.show)
