"""The doctor's checks on one machine, and the report of them."""

import hashlib
import platform
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ray

import drone
from drone.cluster import head_files  # noqa: F401  Makes head:// reachable in this process.
from drone.errors import DroneError
from drone.model.weights import Weights
from drone.storage.filesystem import write_text

_PACKAGES = ("ray", "torch", "torchvision", "numpy", "pillow", "mlflow")


@dataclass(frozen=True, kw_only=True)
class CheckRequest:
    """What the job will use, besides the machines themselves."""

    storage: str
    """Folder or URI for checkpoints, as every machine reaches it."""

    data: str | None = None
    """Data set, as every machine reaches it."""

    fingerprint: str | None = None
    """Fingerprint of the data set."""

    weights: Weights | None = None
    activation_cache: str = ""
    """Folder of the activation cache on each machine."""


@dataclass
class NodeReport:
    """The report of one machine."""

    host: str
    node: str = ""
    """Ray's id of the machine."""

    versions: dict[str, str] = field(default_factory=dict)
    code: str = ""
    """SHA-256 of the project's modules as imported there."""

    gpus: tuple[str, ...] = ()
    """Names of the GPUs that torch sees."""

    ray_gpus: float = 0.0
    """GPUs that Ray counts."""

    shm_gb: float = 0.0
    disk_gb: float = 0.0
    clock_offset_s: float = 0.0
    """Seconds by which its clock is ahead of the job's machine."""

    precision: str = ""
    """Data type that "auto" precision selects there."""

    weights: str = ""
    """SHA-256 of the weights as they arrived."""

    errors: dict[str, str] = field(default_factory=dict)
    """By check: torchvision, storage, data, weights, or machine if it did not answer."""


def inspect_node(request: CheckRequest, marker: str) -> NodeReport:
    """Runs every check on this machine.

    Args:
        request: What the job is about to use.
        marker: Name of a file to write to the storage.
    """
    import torch

    from drone.training.device import activation_dtype

    node = ray.get_runtime_context().get_node_id()
    report = NodeReport(host=socket.gethostname())
    report.versions = {"Python": platform.python_version(), **_package_versions()}
    # Of the files, not the commit: a copy may be incomplete, stale or edited.
    report.code = _code_digest()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report.precision = str(activation_dtype("auto", device)).removeprefix("torch.")
    num_gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    report.gpus = tuple(torch.cuda.get_device_name(number) for number in range(num_gpus))
    report.shm_gb = shutil.disk_usage("/dev/shm").free / 1e9
    report.disk_gb = _free_disk_gb(Path(request.activation_cache or Path.home()))
    checks: dict[str, Callable[[], None]] = {
        "torchvision": _check_torchvision,
        # Only written here: that the job's machine can read it shows that the storage is shared.
        "storage": lambda: write_text(f"{request.storage}/{marker}-{node}", marker),
    }
    if request.data is not None:
        checks["data"] = lambda: _check_data(str(request.data), request.fingerprint)
    if request.weights is not None:
        report.weights = request.weights.sha256
    for name, check in checks.items():
        try:
            check()
        except Exception as error:
            # Whatever breaks is a finding about this machine; the other checks are still made.
            report.errors[name] = describe_error(error)
    return report


def describe_error(error: BaseException) -> str:
    """Returns the last line of an error, or of its cause on another machine."""
    # Ray wraps what a task raised; the traceback is of no use to the user.
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines()
    kind = "" if isinstance(cause, DroneError) else f"{type(cause).__name__}: "
    return f"{kind}{lines[-1] if lines else 'no reason given'}"[:300]


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    return versions


def _code_digest() -> str:
    digest = hashlib.sha256()
    root = Path(str(drone.__file__)).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\n" + file.read_bytes())
    return digest.hexdigest()


def _free_disk_gb(folder: Path) -> float:
    # The cache folder is only created by the first run; its file system is what counts.
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e9


def _check_torchvision() -> None:
    """Runs one of torchvision's compiled operators, which fail beside another torch."""
    import torch
    from torchvision.ops import nms

    nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)


def _check_data(location: str, fingerprint: str | None) -> None:
    import numpy as np

    from drone.storage import dataset_cache

    dataset = dataset_cache.open_at(location, fingerprint)
    # Opening a data set reads only its manifest; the packed pixels may be missing.
    for name in ("train", "validation"):
        dataset.split(name).gather(np.zeros(1, dtype=np.int64))
