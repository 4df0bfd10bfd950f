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

ROOT = Path(__file__).resolve().parents[2]
"""The project's folder, which every worker needs on its path."""

_DEFAULTS = {
    # A worker's end is noticed in a fifth of a second, so that training resumes from the last
    # checkpoint and not from the one before.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
}
_LOCAL_DEFAULTS = {
    # Nothing drains a node of a local Ray; without the watcher a run starts 4 s earlier.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_LEFT_BEHIND = [
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
"""What no worker needs; the slash keeps drone/data."""


@contextlib.contextmanager
def connected(
    num_cpus: int | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Ray for as long as the block runs.

    Joins the cluster that RAY_ADDRESS names, or the job's own; else starts a local Ray.

    Args:
        num_cpus: of a local Ray; None takes the machine's.
        environment: variables of every worker process.
    """
    address = os.environ.get("RAY_ADDRESS")
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    for name, value in {**_DEFAULTS, **({} if address or in_job else _LOCAL_DEFAULTS)}.items():
        os.environ.setdefault(name, value)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # A local Ray's workers inherit it.
    on_sigterm = signal.getsignal(signal.SIGTERM)
    import ray

    runtime: dict[str, Any] = {"env_vars": dict(environment)} if environment else {}
    if address and not in_job:
        ray.init(
            runtime_env={"working_dir": str(ROOT), "excludes": _LEFT_BEHIND, **runtime},
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    elif in_job:
        ray.init(runtime_env=runtime, log_to_driver=False, logging_level=logging.WARNING)
    else:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            runtime_env=runtime,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    # Ray's own handler would end the process at once, without a checkpoint.
    signal.signal(signal.SIGTERM, on_sigterm)
    _state["cluster"] = bool(address or in_job)
    try:
        yield
    finally:
        _state["cluster"] = False
        ray.shutdown()


def on_cluster() -> bool:
    """Whether Ray is connected, and may have or get other machines than this one."""
    return _state["cluster"]


_state = {"cluster": False}


def writable(place: str) -> str:
    """A folder or URI as every machine of the cluster can write to it.

    A folder that other machines do not share becomes one that they reach through this machine.
    """
    if not on_cluster() or "://" in place or _is_shared(Path(place)):
        return place
    return through_here(place)


def readable(place: str) -> str:
    """The same for what is only read; machines that have a copy of it read that."""
    return place if not on_cluster() or "://" in place else through_here(place)


def through_here(place: str) -> str:
    """A folder of this machine as others reach it through an actor."""
    from drone.adapters import head_files, storage

    head_files.offer()
    return f"{storage.HEAD}://{place}"


def _is_shared(folder: Path) -> bool:
    """Whether the machines that are there now see what this one writes there."""
    others = [node for node in other_nodes() if node["Resources"].get("CPU")]
    if not others:
        return False  # Some may come later.
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe-{uuid.uuid4().hex}"
    probe.write_text("probe")
    try:
        seen = on_nodes(_sees, [node["NodeID"] for node in others], str(probe))
        return all(answer is True for answer in seen.values())
    finally:
        probe.unlink()


def _sees(file: str) -> bool:
    return Path(file).exists()


def room() -> tuple[dict[str, float], list[float]]:
    """What work may use: the whole cluster's resources, and the processors of each machine.

    Of a cluster that grows with its work, the machines that it may still get count as well.
    """
    import ray

    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    nodes += _growth(len(nodes)) if on_cluster() else []
    total: dict[str, float] = {}
    for node in nodes:
        for name, amount in node.items():
            total[name] = total.get(name, 0.0) + float(amount)
    return total, [float(node["CPU"]) for node in nodes if node.get("CPU")] or [1.0]


DESCRIPTION = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves the cluster's description on its head."""


def _growth(present: int) -> list[dict[str, float]]:
    """Resources of each machine that the cluster may still get, by its own description."""
    try:
        described = yaml.safe_load(DESCRIPTION.expanduser().read_text("utf-8"))
        kinds = described["available_node_types"]
        left = int(described.get("max_workers", 0)) + 1 - present
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return []  # Not the head of a cluster that `ray up` made.
    kinds.pop(described.get("head_node_type"), None)
    coming: list[dict[str, float]] = []
    for kind in sorted(kinds.values(), key=lambda kind: -kind.get("priority", 0)):
        resources = kind.get("resources") or {}
        if resources.get("CPU"):
            coming += [resources] * int(kind.get("max_workers", 0))
    return coming[: max(0, left)]


def other_nodes() -> list[dict[str, Any]]:
    """Ray's description of each living machine but this one."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]


def on_nodes(
    function: Callable[..., Any], nodes: Sequence[str], *arguments: Any, timeout_s: float = 60.0
) -> dict[str, Any]:
    """What a function returns on each of these machines; what it raised where it did not.

    Args:
        function: of a module that the machines have, or that can be pickled.
        nodes: their ids.
        arguments: of the function, the same on all.
        timeout_s: of all together; a machine that takes longer answers with a TimeoutError.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(function)
    asked = {
        node: task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(*arguments)
        for node in nodes
    }
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout_s)
    answers: dict[str, Any] = {}
    for node, answer in asked.items():
        try:
            answers[node] = ray.get(answer, timeout=0)
        except Exception as error:
            answers[node] = error
    return answers
