"""Training on images of mixed resolutions: ours by bin against the original's way, in one run.

    python bench/multires.py                                     (drawn images, random weights)
    python bench/multires.py --data DATASET --weights FILE       (your own, prepared with --bins)

The original's way: each image decoded, resized to its bin and augmented by PIL in DataLoader
workers, one image a step, fp32, its stacks of convolutions, features 17 to 18 unfrozen. Ours: the
preset multires, packed pixels, as many images at a time as the pixel budget allows. Each side of
each bin runs in a process of its own, and the two take turns, so that a busy machine slows both.
Images/s are of whole steps after a warm-up; memory is the most that the process had.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
import torch.nn.functional as functional
import tyro
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.models import mobilenet_v2

from drone.data import augmentation as augment
from drone.data.batches import DeviceSplit
from drone.data.bins import BIN_SIDES_PX, batch_size_for
from drone.data.dataset import Dataset, open_dataset
from drone.data.prepare.plan import PrepareSettings, map_sequentially, plan_dataset
from drone.data.prepare.write import write_dataset
from drone.labels import CLASSES
from drone.model import mobilenet, weights
from drone.model.mobilenet import IMAGENET_MEAN, IMAGENET_STD
from drone.model.resizer import STACKS
from drone.presets import get_preset
from drone.synth.drawing import draw
from drone.training.device import autocast
from drone.training.memory import ENVIRONMENT, keep_freed_memory
from drone.training.optim import build_optimizer, set_learning_rates
from drone.training.schedule import learning_rates

_MOST_DRAWN = 24
"""Images of a class and bin that are drawn; of large ones fewer."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Arguments."""

    data: Path | None = None
    """Data set prepared with --bins, its raw folder still there; by default drawn images."""

    weights: str = "none"
    """none or a file."""

    sides: tuple[int, ...] = BIN_SIDES_PX
    """Bins to measure; those without images are left out."""

    seconds: float = 10.0
    """That each side of each bin is measured for, at least three steps."""

    budget: int = get_preset("multires").pixel_budget
    """Pixels that go through our network together."""

    only: str | None = None
    """Used by the program itself: one side's name."""


def positions_of(dataset: Dataset, side: int) -> np.ndarray:
    """Training images of a bin."""
    return np.flatnonzero(dataset.at_bins().split("train").sides_N == side)


def ours(job: Bench, dataset: Dataset, side: int) -> Iterator[int]:
    """Steps on one bin as `train.py multires` makes them; yields their images."""
    keep_freed_memory()
    config = get_preset("multires")
    feed = DeviceSplit(dataset.at_bins().split("train"), torch.device("cpu"))
    model = mobilenet.build(config.model, 4, 0, weights.load(job.weights).state()).train()
    optimizer = build_optimizer(model, config.optim)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    own = positions_of(dataset, side)
    size = batch_size_for(side, config.batch_size, job.budget)
    for step in range(10**6):
        positions = np.resize(np.roll(own, -step * size), size)
        views = augment.draw(config.augment, 0, step, feed.keys_N[positions])
        images = augment.apply(feed.pixels(positions), views, mean, std)
        labels = feed.labels_N[torch.from_numpy(positions)]
        set_learning_rates(optimizer, learning_rates(config, step + 1000, 100))
        with autocast(config.precision, torch.device("cpu")):
            logits = model(images).float()
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        yield size


class _Files(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images from their files, as the original read them."""

    def __init__(self, dataset: Dataset, side: int) -> None:
        rows = dataset.rows("train").iloc[positions_of(dataset, side)]
        self.files = [
            Path(root) / path for root, path in zip(rows["root"], rows["path"], strict=True)
        ]
        self.labels = [dataset.classes.index(name) for name in rows["class_name"]]
        self.steps = transforms.Compose(
            [
                transforms.Resize((side, side), transforms.InterpolationMode.NEAREST),
                transforms.RandomApply([transforms.ColorJitter(brightness=0.2)], 0.5),
                transforms.RandomApply([transforms.ColorJitter(contrast=0.2)], 0.5),
                transforms.RandomApply([transforms.RandomRotation(10)], 0.7),
                transforms.RandomHorizontalFlip(0.7),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.open(self.files[index]).convert("RGB")
        return self.steps(image), self.labels[index]


def theirs(job: Bench, dataset: Dataset, side: int) -> Iterator[int]:
    """Steps of one image, as the original made them; yields their images."""
    backbone = mobilenet_v2()
    state = weights.load(job.weights).state()
    if state is not None:
        backbone.load_state_dict(state, strict=False)  # The head is of other classes.
    for parameter in backbone.features[:17].parameters():
        parameter.requires_grad_(False)
    backbone.classifier[1] = nn.Linear(1280, 4)
    stack = [nn.Conv2d(3, 3, factor, factor, bias=False) for factor in STACKS.get(side, ())]
    model = nn.Sequential(*stack, backbone).train()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Its rate of 0.1 soon gives numbers that are slow to compute with; the time is what counts.
    optimizer = torch.optim.SGD(learning, lr=1e-4, momentum=0.9, nesterov=True, weight_decay=1e-4)
    loader = torch.utils.data.DataLoader(
        _Files(dataset, side), batch_size=1, shuffle=True, num_workers=2, persistent_workers=True
    )
    while True:
        for images, labels in loader:
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            yield 1


def measured(job: Bench, side_name: str, dataset: Dataset, side: int) -> tuple[float, float]:
    """Images/s, the median over steps, and the most memory in MiB."""
    steps = (ours if side_name == "ours" else theirs)(job, dataset, side)
    for _ in range(2):
        next(steps)
    speeds: list[float] = []
    began = time.perf_counter()
    while len(speeds) < 3 or time.perf_counter() - began < job.seconds:
        start = time.perf_counter()
        speeds.append(next(steps) / (time.perf_counter() - start))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if side_name == "theirs":  # Single steps vary with the loader: what counts is the whole.
        return len(speeds) / (time.perf_counter() - began), peak
    return statistics.median(speeds), peak


def drawn(place: Path, sides: tuple[int, ...]) -> Dataset:
    """A data set of drawn images of the wanted bins."""
    for number, name in enumerate(CLASSES):
        (place / "raw" / name).mkdir(parents=True)
        for side in sides:
            count = max(4, min(_MOST_DRAWN, batch_size_for(side, 64)))
            for image in range(count):
                image = draw(name, side, side * 3 // 4, np.random.default_rng([number, image]))
                image.save(place / "raw" / name / f"{side}_{image}.jpg", quality=90)
    settings = PrepareSettings(near_duplicate_threshold=0)
    return write_dataset(
        plan_dataset([place / "raw"], settings, map_sequentially),
        place / "set",
        map_sequentially,
        bins=True,
    )[0]


def measure(name: str, job: Bench, folder: Path, side: int) -> tuple[float, float]:
    """One side of one bin in a process of its own."""
    environment = {**os.environ, **(ENVIRONMENT if name == "ours" else {})}
    words = [sys.executable, __file__, "--only", name, "--data", str(folder), "--sides", str(side)]
    words += ["--weights", job.weights, "--seconds", str(job.seconds)]
    words += ["--budget", str(job.budget)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    speed, peak = done.stdout.split()[-2:]
    return float(speed), float(peak)


def main(job: Bench) -> None:
    """Prints the table."""
    if job.only is not None:
        assert job.data is not None
        print(*measured(job, job.only, open_dataset(job.data), job.sides[0]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        dataset = open_dataset(job.data) if job.data else drawn(Path(temporary), job.sides)
        print("side   batch   theirs images/s    MiB   ours images/s    MiB   ratio")
        for side in job.sides:
            if not len(positions_of(dataset, side)):
                continue
            their_speed, their_peak = measure("theirs", job, dataset.folder, side)
            our_speed, our_peak = measure("ours", job, dataset.folder, side)
            batch = batch_size_for(side, get_preset("multires").batch_size, job.budget)
            print(
                f"{side:4}   {batch:5}   {their_speed:15.1f}   {their_peak:4.0f}   "
                f"{our_speed:13.1f}   {our_peak:4.0f}   {our_speed / their_speed:5.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
