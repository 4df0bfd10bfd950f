"""Training on a processor: ours against the original's way and the strongest plain one.

    python bench/training.py                                     (a made-up set, random weights)
    python bench/training.py --data RAW --weights FILE           (your own)

The original's way: ImageFolder, each image decoded and augmented by PIL in DataLoader workers,
fp32, contiguous tensors. The strongest plain way is what a good engineer writes without a library
of ours: torchvision's v2 transforms on tensors in DataLoader workers, channels-last, bf16 autocast
where the processor has it, no gradients below the cut, a fused optimiser. Ours: packed pixels,
batched augmentation, channels-last, bf16 where the processor has it, freed memory kept. The limit
is what the machine's own rate of matrix products allows for the network's multiply-adds, forward
and backward, if nothing else took any time. Same model, same images, same optimiser, same machine;
the sides take turns, so that a busy machine slows all. Images/s are of whole epochs after warm-up.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as functional
import torchvision
import tyro
from PIL import Image
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from drone.config import override
from drone.data import augmentation as augment
from drone.data.batches import DeviceSplit, epoch_order
from drone.data.dataset import open_dataset
from drone.data.prepare.plan import PrepareSettings, map_sequentially, plan_dataset
from drone.data.prepare.write import write_dataset
from drone.model import mobilenet, weights
from drone.model.cost import forward_macs
from drone.model.mobilenet import IMAGENET_MEAN, IMAGENET_STD
from drone.presets import get_preset
from drone.synth.raw_folder import SynthSettings, write_raw_folder
from drone.training.device import activation_dtype, autocast
from drone.training.memory import ENVIRONMENT
from drone.training.optim import build_optimizer, set_learning_rates
from drone.training.schedule import learning_rates

BATCH = 64
SIDE = 224


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
        model.load_state_dict(state, strict=False)  # The head is of other classes.
    model.classifier[1] = torch.nn.Linear(1280, 4)
    for parameter in model.features[: 19 - depth].parameters():
        parameter.requires_grad_(False)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4)
    model.train()

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return timed_epochs(job, loader, step)


def timed_epochs(
    job: Bench, loader: Iterable[Any], step: Callable[[torch.Tensor, torch.Tensor], None]
) -> tuple[float, float]:
    """Images/s of epochs of a loader, and the share of the time that is the wait for it."""
    speeds, shares = [], []
    for _ in range(job.rounds + 1):
        began, outside, count = time.perf_counter(), 0.0, 0
        start = began
        for images, labels in loader:
            outside += time.perf_counter() - start
            step(images, labels)
            count += len(labels)
            start = time.perf_counter()
        seconds = time.perf_counter() - began
        speeds.append(count / seconds)
        shares.append(outside / seconds)
    return statistics.median(speeds[1:]), statistics.median(shares[1:])


def load_tensor(path: str) -> torch.Tensor:
    """An image as uint8, (3, H, W), by the faster decoder where it knows the format."""
    if path.endswith((".jpg", ".jpeg", ".png")):
        return decode_image(path, ImageReadMode.RGB)
    return v2.functional.pil_to_tensor(Image.open(path).convert("RGB"))


def plain(job: Bench, depth: int, raw: Path) -> tuple[float, float]:
    """The same of the strongest plain way."""
    steps = v2.Compose(
        [
            v2.Resize((SIDE, SIDE), antialias=True),
            v2.RandomApply([v2.ColorJitter(brightness=0.2)], 0.5),
            v2.RandomApply([v2.ColorJitter(contrast=0.2)], 0.5),
            v2.RandomApply([v2.RandomRotation(10, v2.InterpolationMode.BILINEAR)], 0.7),
            v2.Pad(16, padding_mode="reflect"),
            v2.RandomCrop(SIDE),
            v2.RandomHorizontalFlip(0.7),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            v2.RandomErasing(0.7, scale=(0.005, 0.08), ratio=(1, 1)),
        ]
    )
    folder = torchvision.datasets.ImageFolder(str(raw), steps, loader=load_tensor)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(folder, range(min(job.images, len(folder)))),
        batch_size=BATCH,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
        prefetch_factor=4,
    )
    device = torch.device("cpu")
    model = torchvision.models.mobilenet_v2()
    state = weights.load(job.weights).state()
    if state is not None:
        model.load_state_dict(state, strict=False)
    frozen, trained = model.features[: 19 - depth], model.features[19 - depth :]
    head = torch.nn.Linear(1280, 4)
    model.requires_grad_(False)
    trained.requires_grad_(True)
    model = model.to(memory_format=torch.channels_last)
    learning = [*trained.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(learning, lr=1e-4, fused=True)
    frozen.eval()
    trained.train()

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        with autocast("auto", device):
            with torch.no_grad():
                activations = frozen(images.to(memory_format=torch.channels_last))
            logits = head(trained(activations).mean((2, 3))).float()
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(logits, labels).backward()
        optimizer.step()

    return timed_epochs(job, loader, step)


def gemm_macs_per_s(device: torch.device, size: int = 2048, seconds: float = 1.0) -> float:
    """Multiply-adds per second of large matrix products, in the type that training uses."""
    dtype = activation_dtype("auto", device)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        left @ right
    wait()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        left @ right
        count += 1
        if count % 20 == 0:
            wait()
    wait()
    return count * size**3 / (time.perf_counter() - began)


def step_macs(depth: int) -> int:
    """Multiply-adds of a training step for one image: forward, and twice that where it learns."""
    macs = forward_macs(SIDE)
    cut = len(macs) - depth
    # The first block that learns needs no gradient of its inputs.
    first = macs[cut] if depth else 0
    return sum(macs) + 2 * sum(macs[cut:]) - first


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
        side = {"ours": ours, "theirs": theirs, "plain": plain}[job.only]
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
        folder = decodable(raw, place / "dataset", place / "plain")
        rate = gemm_macs_per_s(torch.device("cpu"))
        print(f"matrix products: {rate / 1e9:.0f} billion multiply-adds per second")
        columns = ["depth", "original's", "plain", "ours", "limit", "ours / original's"]
        columns += ["ours / plain", "ours / limit", "outside the model: original's, plain, ours"]
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for depth in job.depths:
            measured = {
                side: measure(side, job, depth, place / "dataset" if side == "ours" else folder)
                for side in ("theirs", "plain", "ours")
            }
            (their, _), (best, _), (our, _) = measured.values()
            limit = rate / step_macs(depth)
            shares = ", ".join(f"{share:.0%}" for _, share in measured.values())
            print(
                f"| {depth} | {their:.1f} | {best:.1f} | {our:.1f} | {limit:.0f} | "
                f"{our / their:.1f} | {our / best:.2f} | {our / limit:.2f} | {shares} |",
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
