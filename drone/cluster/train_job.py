"""One attempt at a training run, as it travels to the workers."""

from dataclasses import dataclass

from drone.training.activation_cache.policy import CacheWorkload
from drone.training.activation_cache.store import CacheSpec
from drone.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Workers:
    """What a run computes on."""

    num_workers: int
    min_workers: int
    """Training does not start or continue with fewer."""

    cpus_per_worker: int
    gpus_per_worker: float
    """0 trains on the CPU."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One attempt at a run: what is trained, on what, and where its checkpoints go."""

    config: TrainConfig
    data: str
    """Folder or URI of the data set; every machine must reach it."""

    fingerprint: str
    """Of the data set, the same on every machine."""

    workers: Workers
    storage: str
    """Folder or URI of the run's checkpoints; every machine must reach it."""

    attempt: str
    """Name of this attempt, different from earlier ones'."""

    resume_from: str | None
    """Checkpoint folder of an earlier attempt."""

    max_failures: int
    """How often lost workers are replaced."""

    commit: str
    resplit: int | None = None
    """Number of another partition into training and validation; None is the data set's own."""

    cache: CacheSpec
    """Activation cache on each machine."""

    workload: CacheWorkload
    """What the cache policy must know of other runs over the same views."""
