"""Ray Train's workers, on a local Ray."""

import time
from pathlib import Path

import pytest
import ray

from drone.cluster import connection, train
from drone.cluster.train import Listener
from drone.cluster.train_job import TrainJob, Workers
from drone.config import override
from drone.data.dataset import Dataset
from drone.model import weights
from drone.presets import get_preset
from drone.training.activation_cache.policy import CacheWorkload
from drone.training.activation_cache.store import CacheSpec
from drone.training.best_epoch import History

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class EnoughError(Exception):
    """What the listener raises after the first epoch."""


def _has_enough(history: History) -> None:
    raise EnoughError


def test_workers_stop_when_the_listener_has_had_enough(dataset: Dataset, tmp_path: Path) -> None:
    config = override(get_preset("smoke"), {"epochs": 1000, "batch_size": 16}, "test")
    job = TrainJob(
        config=config,
        data=str(dataset.folder),
        fingerprint=dataset.fingerprint,
        workers=Workers(
            num_workers=1, min_workers=1, cpus_per_worker=1, gpus_per_worker=0.0, may_wait=False
        ),
        storage=str(tmp_path),
        attempt="first",
        resume_from=None,
        max_failures=0,
        commit="",
        cache=CacheSpec(folder=tmp_path / "cache", disk_gb=0.0),
        workload=CacheWorkload(),
    )
    listener = Listener(
        on_cache_decision=lambda _: None,
        on_notice=lambda _: None,
        on_progress=lambda _: None,
        on_history=_has_enough,
        on_poll=lambda: None,
        on_interrupt=lambda: None,
    )
    with connection.connected(num_cpus=1):
        with pytest.raises(EnoughError):
            train.train(job, weights.load("none"), listener)
        # Another run has the processor, and need not wait until the epochs are over.
        give_up_at = time.monotonic() + 30
        while ray.available_resources().get("CPU", 0) < 1 and time.monotonic() < give_up_at:
            time.sleep(0.2)
        assert ray.available_resources()["CPU"] == 1
