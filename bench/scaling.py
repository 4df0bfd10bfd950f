"""What grows with images and workers: seconds and bytes of each stage, measured here.

    python bench/scaling.py                                   (a made-up set; workers 1, 2 and 4)
    python bench/scaling.py --data RAW --weights FILE --workers 1 2

Preparing: images a second with so many processes of Ray. Training: images a second with so many
gloo processes that share one global batch, the time that they spend on each other's gradients, and
the bytes. More workers than processor cores show the cost of sharing, not a gain. docs/scaling.md
says what follows for more machines than one has.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as functional
import tyro
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from drone.config import override
from drone.data import augmentation as augment
from drone.data.batches import DeviceSplit, epoch_order
from drone.data.dataset import open_dataset
from drone.data.prepare.plan import PrepareSettings, Row, map_sequentially, plan_dataset
from drone.data.prepare.write import write_dataset
from drone.model import mobilenet, weights
from drone.model.mobilenet import IMAGENET_MEAN, IMAGENET_STD
from drone.presets import get_preset
from drone.synth.raw_folder import SynthSettings, write_raw_folder
from drone.training.device import autocast
from drone.training.memory import ENVIRONMENT
from drone.training.optim import build_optimizer, set_learning_rates
from drone.training.schedule import learning_rates

BATCH, STEPS, WARM_UP = 64, 12, 2


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Arguments."""

    data: Path | None = None
    """Raw folder of class folders; by default a made-up set."""

    weights: str = "none"
    """none or a file."""

    workers: tuple[int, ...] = (1, 2, 4)
    """Numbers of processes."""

    depth: int = 5
    """Unfreeze depth."""

    prepare: int = 0
    """Used by the program itself: prepares with so many processes."""


def prepared(raw: Path, out: Path, workers: int) -> dict[str, float]:
    """Seconds of reading and of packing all files, by so many processes."""
    words = [sys.executable, __file__, "--prepare", str(workers), "--data", str(raw)]
    environment = {**os.environ, "OUT": str(out)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def prepare_here(raw: Path, out: Path, workers: int) -> dict[str, float]:
    """The same, in a process that Ray belongs to."""
    from drone.cluster import connection as ray_cluster
    from drone.cluster import data as ray_data

    with ray_cluster.connected(num_cpus=workers):

        def on_ray(function: Callable[[Row], Row], rows: Sequence[Row], label: str) -> list[Row]:
            return ray_data.map_rows(function, rows, lambda count: None)

        on_ray(lambda row: row, [{"file": 0}] * (2 * workers), "warm-up")
        began = time.perf_counter()
        planned = plan_dataset([raw], PrepareSettings(policy="first"), on_ray)
        scanned = time.perf_counter()
        write_dataset(planned, out, on_ray)
        return {"scan": scanned - began, "pack": time.perf_counter() - scanned}


def steps(rank: int, world: int, job: Bench, dataset: Path, folder: Path) -> None:
    """Training steps of one of the processes; writes what they took."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    place = f"file://{folder}/rendezvous"
    distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=world)
    config = override(get_preset("finetune"), {"model": {"unfreeze_depth": job.depth}}, "bench")
    feed = DeviceSplit(open_dataset(dataset).split("train"), torch.device("cpu"))
    model = mobilenet.build(config.model, 4, 0, weights.load(job.weights).state())
    model.train()
    optimizer = build_optimizer(model, config.optim)
    set_learning_rates(optimizer, learning_rates(config, 1000, 10))
    network = DistributedDataParallel(model, gradient_as_bucket_view=True) if world > 1 else model
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    order = epoch_order(len(feed), BATCH, 0, 0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradient = torch.zeros(sum(parameter.numel() for parameter in parameters))
    seconds, sharing = [], []
    for step in range(STEPS):
        own = order[step % len(order)][rank::world]
        distributed.barrier()
        began = time.perf_counter()
        views = augment.draw(config.augment, 0, step, feed.keys_N[own])
        images = augment.apply(feed.pixels(own), views, mean, std)
        with autocast(config.precision, torch.device("cpu")):
            logits = network(images).float()
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(logits, feed.labels_N[torch.from_numpy(own)]).backward()
        optimizer.step()
        distributed.barrier()
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
        distributed.all_reduce(gradient)
        sharing.append(time.perf_counter() - began)
    if rank == 0:
        found = {
            "step": statistics.median(seconds[WARM_UP:]),
            "sharing": statistics.median(sharing[WARM_UP:]),
            "gradient_bytes": gradient.numel() * 4,
            "checkpoint_bytes": sum(one.numel() * 4 for one in model.state_dict().values()),
        }
        (folder / "found.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def main(job: Bench) -> None:
    """Prints the tables."""
    if job.prepare:
        assert job.data is not None
        print(json.dumps(prepare_here(job.data, Path(os.environ["OUT"]), job.prepare)))
        return
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        raw = job.data or place / "raw"
        if job.data is None:
            write_raw_folder(raw, SynthSettings(images_per_class=150, mislabelled=0))
        settings = PrepareSettings(policy="first")
        dataset = write_dataset(
            plan_dataset([raw], settings, map_sequentially), place / "dataset", map_sequentially
        )[0]
        files, kept = len(dataset.manifest), int(dataset.manifest["kept"].sum())
        raw_bytes = sum(file.stat().st_size for file in raw.rglob("*") if file.is_file())
        packed = sum(file.stat().st_size for file in (place / "dataset").rglob("*.*"))
        print(f"{files} files, {kept} kept; {os.cpu_count()} processor cores")
        print(f"bytes: {raw_bytes / files:,.0f} a file read, {packed / kept:,.0f} an image packed")
        print("\nworkers   scan files/s   pack images/s")
        for count in job.workers:
            took = prepared(raw, place / f"out-{count}", count)
            print(
                f"{count:7}   {files / took['scan']:12.0f}   {kept / took['pack']:15.0f}",
                flush=True,
            )
        print("\nworkers   images/s   s a step   s on gradients   share   gradient   checkpoint")
        for count in job.workers:
            folder = place / f"steps-{count}"
            folder.mkdir()
            arguments = (count, job, place / "dataset", folder)
            multiprocessing.spawn(steps, arguments, nprocs=count, join=True)
            found = json.loads((folder / "found.json").read_text())
            share = found["sharing"] / found["step"] if count > 1 else 0.0
            print(
                f"{count:7}   {BATCH / found['step']:8.0f}   {found['step']:8.3f}   "
                f"{found['sharing']:14.4f}   {share:5.1%}   {found['gradient_bytes'] / 1e6:5.1f} MB"
                f"   {found['checkpoint_bytes'] / 1e6:7.1f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
