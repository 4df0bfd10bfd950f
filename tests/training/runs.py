"""Short runs of the loop for its tests, in one process or in two."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing

from drone.config import override
from drone.data.dataset import Dataset, open_dataset
from drone.model import mobilenet
from drone.training.config import TrainConfig
from drone.training.context import History, LocalContext, Progress, Stop
from drone.training.loop import Material, fit

QUICK = {
    "epochs": 2,
    "batch_size": 32,
    "precision": "fp32",
    "model": {"unfreeze_depth": 2, "flip_test": False},
}
TIMES = ("speed/images_per_s", "speed/epoch_s")


def quick(**changes: Any) -> TrainConfig:
    """A configuration of seconds; groups of settings in `changes` are merged."""
    merged: dict[str, Any] = {**QUICK}
    for name, value in changes.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
    return override(TrainConfig(), merged, "test")


def material(dataset: Dataset) -> Material:
    return Material(
        train=dataset.split("train"),
        validation=dataset.split("validation"),
        classes=dataset.classes,
        fingerprint=dataset.fingerprint,
    )


class StoppingContext(LocalContext):
    """Asks the loop to stop after some steps."""

    def __init__(self, folder: Path, after_steps: int, stop: Stop) -> None:
        super().__init__(folder)
        self._left, self._stop = after_steps, stop

    def progress(self, progress: Progress) -> None:
        self._left -= 1

    def stop(self) -> Stop:
        return self._stop if self._left <= 0 else Stop.NO


def train(
    config: TrainConfig,
    dataset: Dataset,
    context: LocalContext,
    double: bool = False,
    model: mobilenet.Classifier | None = None,
) -> History:
    """A run from random weights; `double` computes all but the loss in double precision."""
    model = model or mobilenet.build(config.model, len(dataset.classes), config.seed, None)
    if double:
        model.double()
        first = model.features[0] if model.resizer is None else model.resizer
        first.register_forward_pre_hook(lambda _, args: args[0].double())
    return fit(config, material(dataset), model, context)


def train_on_two(config: TrainConfig, dataset: Dataset, folder: Path) -> History:
    """A run in double precision, shared by two processes over gloo."""
    folder.mkdir()
    arguments = (config, dataset.folder, folder, dataset.at_own_sizes)
    multiprocessing.spawn(_worker, arguments, nprocs=2, join=True)
    histories = [torch.load(folder / f"history_{rank}.pt") for rank in range(2)]
    for left, right in zip(*histories, strict=True):  # Every rank knows the same.
        for name, value in left["metrics"].items():
            assert name in TIMES or value == right["metrics"][name]
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


def same_metrics(left: History, right: History, tolerance: float) -> None:
    """Asserts that two runs have the same metrics but for their times; losses within tolerance."""
    assert [entry["epoch"] for entry in left] == [entry["epoch"] for entry in right]
    for one, other in zip(left, right, strict=True):
        assert one["metrics"].keys() == other["metrics"].keys()
        for name, value in one["metrics"].items():
            if name not in TIMES:
                difference = abs(value - other["metrics"][name])
                allowed = tolerance if name.endswith("loss") else 0
                assert difference <= allowed, (one["epoch"], name, value, other["metrics"][name])
