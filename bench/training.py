"""Training on a processor: ours against the original's way, in one run.

    python bench/training.py                                     (a made-up set, random weights)
    python bench/training.py --data RAW --weights FILE           (your own)

The original's way: ImageFolder, each image decoded and augmented by PIL in DataLoader workers,
fp32, contiguous tensors. Ours: packed pixels, batched augmentation, channels-last, bf16 where the
processor has it, freed memory kept. Same model, same images, same optimiser, same machine; the
two take turns, so that a busy machine slows both. Images/s are of whole epochs after a warm-up.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as functional
import torchvision
import tyro
from torchvision import transforms

from drone.config import override
from drone.data import augmentation as augment
from drone.data.batches import DeviceSplit, epoch_order
from drone.data.dataset import open_dataset
from drone.data.prepare.plan import PrepareSettings, map_sequentially, plan_dataset
from drone.data.prepare.write import write_dataset
from drone.model import mobilenet, weights
from drone.model.mobilenet import IMAGENET_MEAN, IMAGENET_STD
from drone.presets import get_preset
from drone.synth.raw_folder import SynthSettings, write_raw_folder
from drone.training.device import autocast
from drone.training.memory import ENVIRONMENT
from drone.training.optim import build_optimizer, set_learning_rates
from drone.training.schedule import learning_rates

BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Arguments."""

    data: Path | None = None
    """Raw folder of class folders; by default a made-up set."""

    weights: str = "none"
    """none or a file."""

    depths: tuple[int, ...] = (0, 3, 5, 19)
    """Unfreeze depths to measure."""

    images: int = 256
    """Images in an epoch."""

    rounds: int = 3
    """Epochs of each, after a warm-up; the median counts."""

    only: str | None = None
    """Used by the program itself: one side's name."""


def ours(job: Bench, depth: int, dataset_folder: Path) -> tuple[float, float]:
    """Images/s of an epoch, and the share of its time that is not the model's."""
    config = override(get_preset("finetune"), {"model": {"unfreeze_depth": depth}}, "bench")
    dataset = open_dataset(dataset_folder)
    feed = DeviceSplit(dataset.split("train"), torch.device("cpu"))
    model = mobilenet.build(config.model, 4, 0, weights.load(job.weights).state())
    optimizer = build_optimizer(model, config.optim)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    speeds, shares = [], []
    model.train()
    for epoch in range(job.rounds + 1):
        order = epoch_order(len(feed), BATCH, 0, epoch)[: max(1, job.images // BATCH)]
        began, outside = time.perf_counter(), 0.0
        for step, positions in enumerate(order):
            start = time.perf_counter()
            views = augment.draw(config.augment, 0, epoch, feed.keys_N[positions])
            images = augment.apply(feed.pixels(positions), views, mean, std)
            labels = feed.labels_N[torch.from_numpy(positions)]
            outside += time.perf_counter() - start
            set_learning_rates(optimizer, learning_rates(config, step + 1000, len(order)))
            with autocast(config.precision, torch.device("cpu")):
                logits = model(images).float()
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(logits, labels).backward()
            optimizer.step()
        seconds = time.perf_counter() - began
        speeds.append(order.size / seconds)
        shares.append(outside / seconds)
    return statistics.median(speeds[1:]), statistics.median(shares[1:])


def theirs(job: Bench, depth: int, raw: Path) -> tuple[float, float]:
    """The same of the original's way; what is not the model's is the wait for the loader."""
    steps = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.RandomApply([transforms.ColorJitter(brightness=0.2)], 0.5),
            transforms.RandomApply([transforms.ColorJitter(contrast=0.2)], 0.5),
            transforms.RandomApply([transforms.RandomRotation(10)], 0.7),
            transforms.Pad(16, padding_mode="reflect"),
            transforms.RandomCrop(224),
            transforms.RandomHorizontalFlip(0.7),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            transforms.RandomErasing(0.7, scale=(0.005, 0.08), ratio=(1, 1)),
        ]
    )
    folder = torchvision.datasets.ImageFolder(str(raw), steps)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(folder, range(min(job.images, len(folder)))),
        batch_size=BATCH,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
    )
    model = torchvision.models.mobilenet_v2()
    state = weights.load(job.weights).state()
    if state is not None:
        model.load_state_dict(state)
    model.classifier[1] = torch.nn.Linear(1280, 4)
    for parameter in model.features[: 19 - depth].parameters():
        parameter.requires_grad_(False)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4)
    model.train()
    speeds, shares = [], []
    for _ in range(job.rounds + 1):
        began, outside, count = time.perf_counter(), 0.0, 0
        start = began
        for images, labels in loader:
            outside += time.perf_counter() - start
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            count += len(labels)
            start = time.perf_counter()
        seconds = time.perf_counter() - began
        speeds.append(count / seconds)
        shares.append(outside / seconds)
    return statistics.median(speeds[1:]), statistics.median(shares[1:])


def decodable(raw: Path, dataset_folder: Path, target: Path) -> Path:
    """The raw folder with the files that the data set kept, since ImageFolder stops at others."""
    manifest = open_dataset(dataset_folder).manifest
    for path in manifest.loc[manifest["split"] == "train", "path"]:
        link = target / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((raw / path).resolve())
    return target


def measure(side: str, job: Bench, depth: int, folder: Path) -> tuple[float, float]:
    """One side in a process of its own, started as a worker of ours is, or plainly."""
    import os

    environment = {**os.environ, **(ENVIRONMENT if side == "ours" else {})}
    words = [sys.executable, __file__, "--only", side, "--data", str(folder)]
    words += ["--depths", str(depth), "--weights", job.weights]
    words += ["--images", str(job.images), "--rounds", str(job.rounds)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    speed, share = done.stdout.split()[-2:]
    return float(speed), float(share)


def main(job: Bench) -> None:
    """Prints the table."""
    if job.only is not None:
        assert job.data is not None
        side = ours if job.only == "ours" else theirs
        print(*side(job, job.depths[0], job.data))
        return
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        raw = job.data or place / "raw"
        if job.data is None:
            write_raw_folder(raw, SynthSettings(images_per_class=100, mislabelled=0))
        settings = replace(PrepareSettings(), policy="first")
        write_dataset(
            plan_dataset([raw], settings, map_sequentially), place / "dataset", map_sequentially
        )
        plain = decodable(raw, place / "dataset", place / "plain")
        print("depth   theirs images/s   ours images/s   ratio   outside the model: theirs   ours")
        for depth in job.depths:
            their_speed, their_share = measure("theirs", job, depth, plain)
            our_speed, our_share = measure("ours", job, depth, place / "dataset")
            print(
                f"{depth:5}   {their_speed:15.1f}   {our_speed:13.1f}   "
                f"{our_speed / their_speed:5.1f}   {their_share:25.0%}   {our_share:4.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
