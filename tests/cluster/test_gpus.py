"""Who gets which part of a GPU, with GPUs that are numbers only."""

import pytest

from drone.cluster import connection
from drone.cluster.train import choose_workers
from drone.cluster.tune import choose_slots
from drone.errors import ConfigError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One machine of 16 CPUs and two GPUs."""
    resources = {"CPU": 16.0, "GPU": 2.0}
    monkeypatch.setattr(connection, "available_resources", lambda: (resources, [16.0]))
    monkeypatch.setattr(connection, "on_cluster", lambda: False)


@pytest.mark.parametrize(
    ("gpus", "each", "count"),
    [(1, 0.25, 4), (1, 0.1, 10), (2, 0.6, 2), (1, 1 / 3, 3), (4, 1, 4), (4, 2, 2), (3, 2, 1)],
)
def test_a_worker_has_its_part_of_one_gpu(gpus: float, each: float, count: int) -> None:
    assert connection.fitting_workers(gpus, each) == count


@pytest.mark.usefixtures("machine")
def test_workers_of_a_run() -> None:
    assert choose_workers(None, None).num_workers == 2  # One per GPU.
    shared = choose_workers(4, 0.5)
    assert (shared.num_workers, shared.gpus_per_worker, shared.cpus_per_worker) == (4, 0.5, 4)
    without = choose_workers(None, 0.0)
    assert (without.num_workers, without.gpus_per_worker, without.cpus_per_worker) == (1, 0.0, 16)
    with pytest.raises(
        ConfigError, match="3 workers with --gpus-per-worker 0.6 do not fit .* 2 GPUs .* 2 do"
    ):
        choose_workers(3, 0.6)


@pytest.mark.usefixtures("machine")
def test_trials_share_a_gpu() -> None:
    slots = choose_slots(None, 1, 0.25, 100)
    assert (slots.concurrency, slots.workers.cpus_per_worker) == (8, 2)
    assert choose_slots(None, 1, 0.25, 12).concurrency == 3  # A quarter of the trials.
    assert choose_slots(None, 1, None, 100).concurrency == 2
    assert choose_slots(None, 2, 0.5, 100).concurrency == 2
    with pytest.raises(ConfigError, match="room for 1 to 2 trials"):
        choose_slots(3, 1, 0.6, 100)
    with pytest.raises(ConfigError, match="does not fit: Ray has 16 CPUs and 2 GPUs"):
        choose_slots(None, 1, 3.0, 100)
