"""Training on a GPU against its own limit: the same model on data that is already there.

    python bench/gpu.py                          (whatever device there is)
    python bench/gpu.py --modes eager compile graphs --batch 256

For each variant images/s of training steps that augment (views drawn, pixels warped and coloured
from the data set in the device's memory), against steps on one batch that was made before. The
difference is the input pipeline's share; more than a tenth is marked. The two take turns.
`compile` is torch.compile, `graphs` the same with CUDA graphs. Images are made up and weights
random: the speed does not depend on them.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
import torch.nn.functional as functional
import tyro

from drone.config import override
from drone.data import augmentation as augment
from drone.model import mobilenet
from drone.model.mobilenet import IMAGENET_MEAN, IMAGENET_STD
from drone.presets import get_preset
from drone.training.device import activation_dtype, autocast, set_tf32
from drone.training.optim import build_optimizer, set_learning_rates
from drone.training.schedule import learning_rates

Mode = Literal["eager", "compile", "graphs"]
VARIANTS = {"frozen": 0, "finetune": 5, "seed-attempt-2": 3, "all blocks": 19}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Arguments."""

    batch: int = 64
    """Images in a step."""

    steps: int = 50
    """Steps of each measurement; on a processor 3 will do."""

    rounds: int = 3
    """Measurements of each kind, in turns; the median counts."""

    modes: tuple[Mode, ...] = ("eager", "compile", "graphs")
    """Ways to run the network."""

    images: int = 4096
    """Images in the device's memory."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """As train.py takes it."""


def step_of(
    job: Bench, depth: int, mode: Mode, device: torch.device
) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """A training step of a variant."""
    config = override(get_preset("finetune"), {"model": {"unfreeze_depth": depth}}, "bench")
    config = replace(config, precision=job.precision)
    model = mobilenet.build(config.model, 4, 0, None).to(device)
    model.train()
    optimizer = build_optimizer(model, config.optim)
    set_learning_rates(optimizer, learning_rates(config, 1000, 10))
    network: Any = model
    if mode != "eager":
        network = torch.compile(model, mode="reduce-overhead" if mode == "graphs" else "default")

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        with autocast(config.precision, device):
            logits = network(images).float()
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(logits, labels).backward()
        optimizer.step()

    return step


def main(job: Bench) -> None:
    """Prints the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    set_tf32(False)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "processor"
    kind = str(activation_dtype(job.precision, device)).removeprefix("torch.")
    print(f"{name}, {kind}, torch {torch.__version__}, {job.batch} images a step")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (job.images, 224, 224, 3), dtype=np.uint8)
    pixels_NHWC = torch.from_numpy(images).to(device)
    labels_N = torch.arange(job.images, device=device) % 4
    keys_N = torch.arange(job.images)
    mean, std = (
        torch.tensor(IMAGENET_MEAN, device=device),
        torch.tensor(IMAGENET_STD, device=device),
    )
    settings = get_preset("finetune").augment

    def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        positions = torch.arange(number * job.batch, (number + 1) * job.batch) % job.images
        views = augment.draw(settings, 0, number, keys_N[positions])
        there = positions.to(device)
        return augment.apply(pixels_NHWC[there], views, mean, std), labels_N[there]

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    ready = batch(0)
    print(
        f"{'variant':<16} {'mode':<8} {'limit':>9} {'ours':>9}   images/s, and the share of input"
    )
    for variant, depth in VARIANTS.items():
        for mode in job.modes:
            step = step_of(job, depth, mode, device)
            for number in range(3):
                step(*batch(number))
            limits, ours = [], []
            for _ in range(job.rounds):
                wait()
                began = time.perf_counter()
                for _ in range(job.steps):
                    step(*ready)
                wait()
                limits.append(job.steps * job.batch / (time.perf_counter() - began))
                began = time.perf_counter()
                for number in range(job.steps):
                    step(*batch(number))
                wait()
                ours.append(job.steps * job.batch / (time.perf_counter() - began))
            limit, own = statistics.median(limits), statistics.median(ours)
            share = 1 - own / limit
            mark = "  more than a tenth" if share > 0.1 else ""
            print(
                f"{variant:<16} {mode:<8} {limit:9.0f} {own:9.0f}   {share:5.1%}{mark}", flush=True
            )


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
