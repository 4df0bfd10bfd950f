"""Looks at every machine of a cluster before a job relies on it: facts of each, then verdicts."""

import hashlib
import os
import platform
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import drone
from drone.adapters import dataset_cache, ray_cluster, storage
from drone.adapters.mlflow_tracking import FAILURES
from drone.errors import DroneError
from drone.model.weights import Weights

LEAST_SHM_GB, LEAST_DISK_GB, MOST_CLOCK_S = 1.0, 5.0, 2.0
_TIMEOUT_S = 120.0

Verdict = Literal["ok", "warning", "failure"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What the job is about to use, beside the machines themselves."""

    storage: str
    """Folder or URI for checkpoints, as every machine reaches it."""

    data: str | None = None
    """Data set, as every machine reaches it."""

    fingerprint: str | None = None
    """Of the data set."""

    weights: Weights | None = None
    tracking: str | None = None
    """URI of the tracking server; None, or a store on this machine, is used from here alone."""

    features: str = ""
    """Folder on each machine that kept activations go to."""


@dataclass
class Facts:
    """What one machine says of itself; text stands for an error, in an entry of `errors`."""

    host: str
    node: str = ""
    """Ray's id of it."""

    versions: dict[str, str] = field(default_factory=dict)
    code: str = ""
    gpus: tuple[str, ...] = ()
    ray_gpus: float = 0.0
    shm_gb: float = 0.0
    disk_gb: float = 0.0
    clock_s: float = 0.0
    """How far its clock is ahead of this machine's."""

    precision: str = ""
    weights: str = ""
    """SHA-256 of the weights as they arrived there."""

    errors: dict[str, str] = field(default_factory=dict)
    """By check: torchvision, storage, tracking, data, weights, machine."""


@dataclass(frozen=True)
class Finding:
    """One check, over all machines of which it says the same."""

    check: str
    verdict: Verdict
    machines: tuple[str, ...]
    says: str
    fix: str = ""


def examine(subject: Subject, say: Callable[[str], None] = lambda _: None) -> list[Finding]:
    """Asks every machine and judges what they say; Ray must be connected."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    names = {node["NodeID"]: node["NodeManagerHostname"] for node in nodes}
    say(f"Looking at {len(nodes)} machine{'s' if len(nodes) != 1 else ''} ...")
    subject_ref = ray.put(subject)
    mark = f".doctor-{uuid.uuid4().hex}"
    run_id, no_tracking = None, ""
    try:
        run_id = _tracking_run(subject.tracking)
    except FAILURES as error:
        no_tracking = _line(error)
    try:
        answers = ray_cluster.on_nodes(
            _look, list(names), subject_ref, mark, run_id, timeout_s=_TIMEOUT_S
        )
        offsets = {node: _clock_offset(node) for node in names}
        facts = []
        for node in nodes:
            answer = answers[node["NodeID"]]
            if not isinstance(answer, Facts):
                answer = Facts(names[node["NodeID"]], errors={"machine": _line(answer)})
            answer.node = node["NodeID"]
            if no_tracking:
                answer.errors["tracking"] = no_tracking
            answer.ray_gpus = float(node["Resources"].get("GPU", 0))
            answer.clock_s = offsets[node["NodeID"]]
            _find_mark(subject.storage, mark, answer)
            _find_artifact(subject.tracking, run_id, answer)
            facts.append(answer)
    finally:
        _forget_run(subject.tracking, run_id)
    return judge(facts, subject)


def judge(facts: Sequence[Facts], subject: Subject) -> list[Finding]:
    """What is well and what is not, with a way out; the worst of each check decides it."""
    findings: list[Finding] = []

    def add(check: str, verdict: Verdict, hosts: Sequence[str], says: str, fix: str = "") -> None:
        findings.append(Finding(check, verdict, tuple(hosts), says, fix))

    silent = [one for one in facts if "machine" in one.errors]
    for one in silent:
        add("answers", "failure", [one.host], one.errors["machine"], _FIXES["answers"])
    facts = [one for one in facts if one not in silent]
    hosts = [one.host for one in facts]
    if not facts:
        return findings
    add("answers", "ok", hosts, "every check was run")
    for name in facts[0].versions:
        _same(add, name, _by_value(facts, _version_of(name)), _FIXES["versions"])
    _errors_or(add, facts, "torchvision", "fits torch")
    _same(add, "code", _by_value(facts, lambda one: one.code[:12]), _FIXES["code"])
    _same(add, "precision", _by_value(facts, lambda one: one.precision), _FIXES["precision"], True)
    _errors_or(add, facts, "storage", f"written and read: {subject.storage}")
    if subject.tracking is not None:
        _errors_or(add, facts, "tracking", f"an artifact came back from {subject.tracking}")
    if subject.data is not None:
        _errors_or(add, facts, "data", f"{subject.data} is {str(subject.fingerprint)[:12]}")
    if subject.weights is not None:
        for one in facts:
            if one.weights != subject.weights.sha256:
                one.errors["weights"] = f"other bytes than were sent: SHA-256 {one.weights[:12]}"
        _errors_or(add, facts, "weights", f"SHA-256 {subject.weights.sha256[:12]}")
    for one in facts:
        _gpus(add, one)
        if one.shm_gb < LEAST_SHM_GB:
            says = f"{one.shm_gb:.1f} GB free in /dev/shm"
            add("shared memory", "warning", [one.host], says, _FIXES["shm"])
        if one.disk_gb < LEAST_DISK_GB:
            says = f"{one.disk_gb:.1f} GB free for kept activations"
            add("disk", "warning", [one.host], says, _FIXES["disk"])
        if abs(one.clock_s) > MOST_CLOCK_S:
            says = f"its clock is {one.clock_s:+.0f} s off this machine's"
            add("clock", "warning", [one.host], says, _FIXES["clock"])
    for check, told in (
        ("shared memory", f"{min(one.shm_gb for one in facts):.0f} GB or more"),
        ("disk", f"{min(one.disk_gb for one in facts):.0f} GB or more"),
        ("clock", f"within {max(abs(one.clock_s) for one in facts):.1f} s"),
    ):
        if all(finding.check != check for finding in findings):
            add(check, "ok", hosts, told)
    return findings


_FIXES = {
    "answers": "Look at the machine: is it up, and is Ray running there (ray status)?",
    "versions": "Install the same requirements.txt on all: ray up with the same setup_commands.",
    "torchvision": "Install the pair of requirements.txt: torch and torchvision must match.",
    "code": "Start the job from one copy of the project; ray up brings it to all machines.",
    "precision": "Mixed processors: set --precision fp32 so that all compute the same.",
    "storage": "Give --storage a place that all machines can write to, such as s3://bucket/runs.",
    "tracking": "Is the server up, and MLFLOW_TRACKING_URI an address that this machine reaches?",
    "data": "Copy the data set there, or give --data a place that all machines reach.",
    "weights": "The machine got other bytes than were sent: look at its memory and network.",
    "gpu": "Install the driver that this torch wants, or start Ray with --num-gpus=0 there.",
    "shm": "mount -o remount,size=70% /dev/shm, before Ray starts.",
    "disk": "Free some space, or name another folder with --features.",
    "clock": "Switch on time synchronisation (timedatectl set-ntp true).",
}
Add = Callable[..., None]


def _version_of(name: str) -> Callable[[Facts], str]:
    return lambda one: one.versions.get(name, "missing")


def _by_value(facts: Sequence[Facts], value: Callable[[Facts], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in facts:
        found.setdefault(value(one), []).append(one.host)
    return found


def _same(
    add: Add, check: str, found: dict[str, list[str]], fix: str, only_warn: bool = False
) -> None:
    """All machines should say the same; the minority is named."""
    if len(found) == 1:
        ((value, hosts),) = found.items()
        add(check, "ok", hosts, value)
        return
    usual = max(found, key=lambda value: len(found[value]))
    for value, hosts in found.items():
        verdict: Verdict = "ok" if value == usual else "warning" if only_warn else "failure"
        says = value if value == usual else f"{value}, where others have {usual}"
        add(check, verdict, hosts, says, "" if value == usual else fix)


def _errors_or(add: Add, facts: Sequence[Facts], check: str, well: str) -> None:
    """What went wrong, machine by machine, and who is well."""
    for one in facts:
        if check in one.errors:
            add(check, "failure", [one.host], one.errors[check], _FIXES[check])
    fine = [one.host for one in facts if check not in one.errors]
    if fine:
        add(check, "ok", fine, well)


def _gpus(add: Add, one: Facts) -> None:
    if one.ray_gpus and len(one.gpus) < one.ray_gpus:
        says = f"Ray counts {one.ray_gpus:g} GPUs, torch sees {len(one.gpus)}"
        add("GPUs", "failure", [one.host], says, _FIXES["gpu"])
    else:
        add("GPUs", "ok", [one.host], ", ".join(one.gpus) or "none")


def _look(subject: Subject, mark: str, run_id: str | None) -> Facts:
    """Runs on each machine."""
    import ray
    import torch

    from drone.training.device import computes_in

    node = ray.get_runtime_context().get_node_id()
    facts = Facts(host=socket.gethostname())
    facts.versions = {"Python": platform.python_version(), **_versions()}
    facts.code = _code()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts.precision = str(computes_in("auto", device)).removeprefix("torch.")
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    facts.gpus = tuple(torch.cuda.get_device_name(number) for number in range(count))
    facts.shm_gb = shutil.disk_usage("/dev/shm").free / 1e9
    facts.disk_gb = _free_gb(Path(subject.features or Path.home()))
    checks: dict[str, Callable[[], None]] = {"torchvision": _torchvision_works}
    checks["storage"] = lambda: storage.write_text(f"{subject.storage}/{mark}-{node}", mark)
    if run_id is not None:
        checks["tracking"] = lambda: _log_artifact(str(subject.tracking), run_id, node)
    data = subject.data
    if data is not None:
        checks["data"] = lambda: _read_data(data, subject.fingerprint)
    if subject.weights is not None:
        facts.weights = subject.weights.sha256
    for name, check in checks.items():
        try:
            check()
        except Exception as error:
            facts.errors[name] = _line(error)
    return facts


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("ray", "torch", "torchvision", "numpy", "pillow", "mlflow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def _code() -> str:
    """SHA-256 of the project's own modules, as they were imported here."""
    digest = hashlib.sha256()
    root = Path(str(drone.__file__)).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\n" + file.read_bytes())
    return digest.hexdigest()


def _free_gb(folder: Path) -> float:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e9


def _torchvision_works() -> None:
    import torch
    from torchvision.ops import nms

    nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)


def _read_data(place: str, fingerprint: str | None) -> None:
    import numpy as np

    dataset = dataset_cache.open_at(place, fingerprint)
    for name in ("train", "validation"):
        dataset.split(name).gather(np.zeros(1, dtype=np.int64))


def _log_artifact(uri: str, run_id: str, node: str) -> None:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    import mlflow
    from mlflow.tracking import MlflowClient

    mlflow.set_tracking_uri(uri)
    MlflowClient(uri).log_text(run_id, node, f"{node}.txt")


def _tracking_run(uri: str | None) -> str | None:
    """A run for the round trip, or None where only this machine uses the store."""
    if uri is None or not uri.startswith(("http://", "https://")):
        return None
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("doctor")
    number = experiment.experiment_id if experiment else client.create_experiment("doctor")
    return str(client.create_run(number, run_name="doctor").info.run_id)


def _find_artifact(uri: str | None, run_id: str | None, facts: Facts) -> None:
    if run_id is None or "tracking" in facts.errors or "machine" in facts.errors:
        return
    from mlflow.tracking import MlflowClient

    found = {item.path for item in MlflowClient(uri).list_artifacts(run_id)}
    if f"{facts.node}.txt" not in found:
        facts.errors["tracking"] = "what it sent to the tracking server did not arrive"


def _forget_run(uri: str | None, run_id: str | None) -> None:
    if run_id is not None:
        from mlflow.tracking import MlflowClient

        MlflowClient(uri).set_terminated(run_id)
        MlflowClient(uri).delete_run(run_id)


def _find_mark(place: str, mark: str, facts: Facts) -> None:
    """What a machine wrote must be seen here: storage that is private gives no error there."""
    if "storage" in facts.errors or "machine" in facts.errors:
        return
    try:
        storage.read_text(f"{place}/{mark}-{facts.node}")
        storage.delete_file(f"{place}/{mark}-{facts.node}")
    except OSError:
        facts.errors["storage"] = f"what it writes to {place} is not seen by this machine"


def _clock_offset(node: str) -> float:
    """Seconds, to within half the time that the question took."""
    before = time.time()
    answer = ray_cluster.on_nodes(_now, [node], timeout_s=20)[node]
    after = time.time()
    return float(answer) - (before + after) / 2 if isinstance(answer, float) else 0.0


def _now() -> float:
    return time.time()


def _line(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error
    text = str(cause).strip().splitlines()
    kind = "" if isinstance(cause, DroneError) else f"{type(cause).__name__}: "
    return f"{kind}{text[-1] if text else 'no reason given'}"[:300]
