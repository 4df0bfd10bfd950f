"""Short training runs, on one rank or on two."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed

from drone.config import override
from drone.data.dataset import Dataset, open_dataset
from drone.model import mobilenet
from drone.training.best_epoch import History
from drone.training.config import TrainConfig
from drone.training.context import LocalContext, Progress, Stop
from drone.training.data import TrainingData
from drone.training.loop import fit
from tests.job_process import run_two_ranks

_SHORT = {
    "epochs": 2,
    "batch_size": 32,
    "precision": "fp32",
    "model": {"unfreeze_depth": 2, "test_time_flip": False},
}
TIMINGS = ("speed/images_per_s", "speed/epoch_s")


def short_config(**changes: Any) -> TrainConfig:
    """A configuration that trains in seconds; groups of settings in `changes` are merged."""
    merged: dict[str, Any] = {**_SHORT}
    for name, value in changes.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
    return override(TrainConfig(), merged, "test")


class StoppingContext(LocalContext):
    """Stops the loop after some steps."""

    def __init__(self, folder: Path, after_steps: int, stop: Stop) -> None:
        super().__init__(folder)
        self._steps_left, self._stop = after_steps, stop

    def progress(self, progress: Progress) -> None:
        self._steps_left -= 1

    def stop(self) -> Stop:
        return self._stop if self._steps_left <= 0 else Stop.NO


def train(
    config: TrainConfig,
    dataset: Dataset,
    context: LocalContext,
    double: bool = False,
    model: mobilenet.Classifier | None = None,
) -> History:
    """Trains from random weights; `double` computes all but the loss in double precision."""
    model = model or mobilenet.build(config.model, len(dataset.classes), config.seed, None)
    if double:
        model.double()
        first = model.features[0] if model.resizer is None else model.resizer
        first.register_forward_pre_hook(lambda _, args: args[0].double())
    return fit(config, TrainingData.of(dataset, None, config.train_on), model, context)


def train_on_two_ranks(config: TrainConfig, dataset: Dataset, folder: Path) -> History:
    """Trains in double precision, on two ranks over gloo."""
    folder.mkdir()
    args = (config, dataset.folder, folder, dataset.at_own_sizes)
    run_two_ranks(_worker, args)
    histories = [torch.load(folder / f"history_{rank}.pt") for rank in range(2)]
    for left, right in zip(*histories, strict=True):  # Every rank has the same history.
        for name, value in left["metrics"].items():
            assert name in TIMINGS or value == right["metrics"][name]
    return histories[0]


def _worker(rank: int, config: TrainConfig, data: Path, folder: Path, at_bins: bool) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    context = LocalContext(folder / "checkpoints")
    context.rank, context.world_size = rank, 2
    dataset = open_dataset(data).at_bins() if at_bins else open_dataset(data)
    history = train(config, dataset, context, double=True)
    torch.save(history, folder / f"history_{rank}.pt")
    distributed.destroy_process_group()


def assert_same_metrics(left: History, right: History, tolerance: float) -> None:
    """Asserts that two runs have the same metrics, timings aside, and losses within a tolerance."""
    assert [entry["epoch"] for entry in left] == [entry["epoch"] for entry in right]
    for entry, other in zip(left, right, strict=True):
        assert entry["metrics"].keys() == other["metrics"].keys()
        for name, value in entry["metrics"].items():
            if name not in TIMINGS:
                difference = abs(value - other["metrics"][name])
                max_difference = tolerance if name.endswith("loss") else 0
                details = (entry["epoch"], name, value, other["metrics"][name])
                assert difference <= max_difference, details
