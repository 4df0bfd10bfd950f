"""The connection to Ray: a local one of our own, or the cluster that RAY_ADDRESS names."""

import contextlib
import logging
import os
import signal
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from drone import secret_file
from drone.errors import RunError
from drone.project import ROOT
from drone.storage.filesystem import head_uri

_DEFAULTS = {
    # A worker's end is noticed within a fifth of a second, so that training resumes from the last
    # checkpoint and not from the one before.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    # By default a task whose worker is killed for lack of memory is retried without end.
    "RAY_task_oom_retries": "3",
}
_LOCAL_DEFAULTS = {
    # Nothing drains a node of a local Ray; without the watcher a run starts 4 s earlier.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_NOT_UPLOADED = [
    "/.venv",
    "/.git",
    "/data",
    "/demo",
    "/runs",
    "/studies",
    "/reports",
    "/mlartifacts",
    "/mlflow.db*",
]
"""Parts of the checkout that no worker needs; the leading slash spares drone/data."""

_connection = {"cluster": False}


@contextlib.contextmanager
def connected(
    num_cpus: int | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Connects to Ray while the block runs.

    Joins the cluster that RAY_ADDRESS names, or the job's own; otherwise starts a local Ray.

    Args:
        num_cpus: CPUs of a local Ray; None uses all of this machine's.
        environment: Environment variables of every worker process.

    Raises:
        RunError: There is no cluster at RAY_ADDRESS, or Ray cannot start its workers.
    """
    address = os.environ.get("RAY_ADDRESS")
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    for name, value in {**_DEFAULTS, **({} if address or in_job else _LOCAL_DEFAULTS)}.items():
        os.environ.setdefault(name, value)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # A local Ray's workers inherit it.
    on_sigterm = signal.getsignal(signal.SIGTERM)
    import ray

    from drone.cluster import startup

    runtime_env: dict[str, Any] = {"env_vars": dict(environment)} if environment else {}
    try:
        if address and not in_job:
            _join(address, runtime_env)
        elif in_job:  # The job server has set the working directory already.
            startup.start(runtime_env, logging_level=logging.WARNING)
        else:
            _protect_token()
            startup.start(
                runtime_env,
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                logging_level=logging.ERROR,
            )
        # Ray's own handler would end the process at once, without a checkpoint.
        signal.signal(signal.SIGTERM, on_sigterm)
        _connection["cluster"] = bool(address or in_job)
        with startup.errors_explained():
            yield
    finally:
        _connection["cluster"] = False
        ray.shutdown()


def _protect_token() -> None:
    """Generates the token that a local Ray would write for everyone on this machine to read."""
    mode = os.environ.get("RAY_AUTH_MODE", "token").lower()
    if mode == "token" and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        # Where it cannot be written, Ray says so.
        with contextlib.suppress(OSError):
            secret_file.read_or_create(secret_file.RAY_TOKEN.expanduser())


def _join(address: str, runtime_env: dict[str, Any]) -> None:
    """Joins the cluster that RAY_ADDRESS names."""
    from drone.cluster import startup

    try:
        startup.start(
            {"working_dir": str(ROOT), "excludes": _NOT_UPLOADED, **runtime_env},
            logging_level=logging.WARNING,
        )
    # ConnectionError: nothing answers there. ValueError: it is no address.
    except (ConnectionError, ValueError) as error:
        reason = str(error).split("\n")[0][:300].rstrip(".")
        raise RunError(
            f"There is no Ray cluster at RAY_ADDRESS={address} ({reason}). Start it, correct the "
            f"address, or unset RAY_ADDRESS to use a local Ray."
        ) from error


def on_cluster() -> bool:
    """Whether Ray is connected and may have, or get, other machines than this one."""
    return _connection["cluster"]


def writable_uri(location: str) -> str:
    """Returns the URI under which every machine of the cluster can write to a location.

    A local folder that the other machines do not share becomes a `head://` URI.
    """
    if not on_cluster() or "://" in location or _is_shared(Path(location)):
        return location
    return _serve_folder(location)


def readable_uri(location: str) -> str:
    """Returns the URI under which every machine can read a location, or its own copy of it."""
    return location if not on_cluster() or "://" in location else _serve_folder(location)


def _serve_folder(folder: str) -> str:
    from drone.cluster import head_files

    head_files.start_actor()
    return head_uri(folder)


def _is_shared(folder: Path) -> bool:
    """Whether the other machines of the moment see what this one writes to a folder."""
    others = [node for node in other_nodes() if node["Resources"].get("CPU")]
    if not others:
        return False  # Some may join later.
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe-{uuid.uuid4().hex}"
    probe.write_text("probe")
    try:
        visible = run_on_nodes(_exists, [node["NodeID"] for node in others], str(probe))
        return all(result is True for result in visible.values())
    finally:
        probe.unlink()


def _exists(file: str) -> bool:
    return Path(file).exists()


def available_resources() -> tuple[dict[str, float], list[float]]:
    """Returns the resources of the cluster in total, and the CPUs of each machine.

    Machines that an autoscaling cluster may still add are counted too.
    """
    import ray

    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    nodes += _autoscaling_headroom(len(nodes)) if on_cluster() else []
    totals: dict[str, float] = {}
    for node in nodes:
        for name, amount in node.items():
            totals[name] = totals.get(name, 0.0) + float(amount)
    return totals, [float(node["CPU"]) for node in nodes if node.get("CPU")] or [1.0]


def fitting_workers(gpus: float, gpus_per_worker: float) -> int:
    """Returns how many workers fit on so many GPUs; a part of a GPU is on one of them."""
    # The small term is for rounding: ten workers with a tenth each fit on one.
    if gpus_per_worker < 1:
        return int(gpus) * int(1 / gpus_per_worker + 1e-9)
    return int(gpus / gpus_per_worker + 1e-9)


BOOTSTRAP_CONFIG = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves the cluster's description on its head."""

KUBERNETES_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where Kubernetes names the namespace of a pod."""


def _autoscaling_headroom(num_present: int) -> list[dict[str, float]]:
    """Returns the resources of each machine that the cluster may still add, by its config."""
    try:
        config = _autoscaling_config()
        node_types = config["available_node_types"]
        headroom = int(config.get("max_workers", 0)) + 1 - num_present
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return []  # Not the head of a cluster that grows.
    node_types.pop(config.get("head_node_type"), None)
    machines: list[dict[str, float]] = []
    for node_type in sorted(node_types.values(), key=lambda kind: -kind.get("priority", 0)):
        resources = node_type.get("resources") or {}
        if resources.get("CPU"):
            machines += [resources] * int(node_type.get("max_workers", 0))
    return machines[: max(0, headroom)]


def _autoscaling_config() -> Any:
    """Returns the description of the cluster, as `ray up` writes it, from where it is kept.

    Raises:
        OSError: There is none, or Kubernetes does not let this pod read it.
    """
    name = os.environ.get("RAY_CLUSTER_NAME")  # Set in the pods of KubeRay.
    if name is None:
        return yaml.safe_load(BOOTSTRAP_CONFIG.expanduser().read_text("utf-8"))
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    api = node_provider.KubernetesHttpApiClient(KUBERNETES_NAMESPACE.read_text("utf-8"))
    # Like Ray's own autoscaler beside it, whose role lets the head's pod read this.
    description = api.get(f"rayclusters/{name}")
    if not description["spec"].get("enableInTreeAutoscaling"):
        raise FileNotFoundError(f"The RayCluster {name} does not grow.")
    return autoscaling_config._derive_autoscaling_config_from_ray_cr(description)


def other_nodes() -> list[dict[str, Any]]:
    """Returns Ray's description of each other machine that is alive."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]


def run_on_nodes(
    function: Callable[..., Any], nodes: Sequence[str], *arguments: Any, timeout_s: float = 60.0
) -> dict[str, Any]:
    """Runs a function on each of these machines.

    Args:
        function: Function of a module that the machines have, or one that can be pickled.
        nodes: Ids of the machines.
        arguments: Arguments of the function, the same on every machine.
        timeout_s: Seconds that all machines together may take.

    Returns:
        What the function returned, or the exception that it raised, by node id; a machine that
        takes too long gives a TimeoutError.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # No CPUs: it must also run on a machine whose CPUs are all taken, or that offers none.
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    futures = {
        node: task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(*arguments)
        for node in nodes
    }
    ray.wait(list(futures.values()), num_returns=len(futures), timeout=timeout_s)
    results: dict[str, Any] = {}
    for node, future in futures.items():
        try:
            results[node] = ray.get(future, timeout=0)
        except Exception as error:
            # Returned, not raised: one broken machine must not hide the answers of the others.
            results[node] = error
    return results
