"""The connection to Ray: a local one of our own, or the cluster that RAY_ADDRESS names."""

import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
    try:
        yield
    finally:
        ray.shutdown()
