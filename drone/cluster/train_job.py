"""One attempt at a training run, as it travels to the workers."""

import math
from dataclasses import dataclass

from drone.errors import ConfigError
from drone.training.activation_cache.policy import CacheWorkload
from drone.training.activation_cache.store import CacheSpec
from drone.training.config import TrainConfig
from drone.training.data import Fold


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Workers of a run, and their resources."""

    num_workers: int
    """Number of processes that share each batch."""

    min_workers: int
    """Minimum with which training starts or continues."""

    cpus_per_worker: int
    gpus_per_worker: float
    """GPUs per worker; 0 trains on the CPU."""

    may_wait: bool
    """Whether workers that do not start may be waiting for machines that join later."""

    def __post_init__(self) -> None:
        # With less, Ray would wait for ever.
        if not 0 <= self.gpus_per_worker < math.inf:
            raise ConfigError(f"--gpus-per-worker is {self.gpus_per_worker}; it must be 0 or more.")


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One attempt at a run: what is trained, on what, and where its checkpoints go."""

    config: TrainConfig
    data: str
    """Folder or URI of the data set; every machine must reach it."""

    fingerprint: str
    """Fingerprint of the data set, the same on every machine."""

    workers: Workers
    storage: str
    """Folder or URI of the run's checkpoints; every machine must reach it."""

    attempt: str
    """Name of this attempt, different from those of earlier attempts."""

    resume_from: str | None
    """Checkpoint folder of an earlier attempt."""

    max_failures: int
    """Maximum number of times that lost workers are replaced."""

    commit: str
    fold: Fold | None = None
    """Fold that is held out for validation; None holds out the validation split."""

    keep_predictions: bool = False
    """Whether epochs come with the predictions of the validation images."""

    cache: CacheSpec
    """Activation cache on each machine."""

    workload: CacheWorkload
    """Other runs over the same views, for the cache policy."""
