"""A search on a processor: ours against the tutorials' way, in one run.

    python bench/search.py                                      (a made-up set, random weights)
    python bench/search.py --data RAW --weights FILE            (your own)

Configurations of depths 0 to 5, all head widths and two strengths; the same epochs, seeds,
starting weights, learning rates and schedule on both sides. The tutorials' way is a Ray Tune
function trainable: ImageFolder, PIL for each image, a DataLoader, fp32, contiguous tensors, every
trial computing everything. Ours is `ray_jobs/tune.py` as a user types it, MLflow and all. Each side
runs alone; what counts is the time until 4, 8 and 16 trials were
done, and the validation accuracies at the end.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as functional
import tyro
import yaml
from torchvision import datasets, transforms

from bench.training import IMAGENET_MEAN, IMAGENET_STD
from drone.config import override
from drone.data.dataset import open_dataset
from drone.data.prepare.plan import PrepareSettings, map_sequentially, plan_dataset
from drone.data.prepare.write import write_dataset
from drone.model import mobilenet, weights
from drone.model.folding import set_folding
from drone.presets import get_preset
from drone.search.space import apply_params
from drone.synth.raw_folder import SynthSettings, write_raw_folder
from drone.training.config import TrainConfig
from drone.training.optim import build_optimizer, set_learning_rates
from drone.training.schedule import learning_rates

BATCH = 64
SIDE = 224
FIXED = {"test_time_flip": False}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Arguments."""

    data: Path | None = None
    """Raw folder of class folders; by default a made-up set."""

    weights: str = "none"
    """none or a file."""

    epochs: int = 4
    """Of each trial."""

    trials: int = 16
    """Number of configurations, at most 36."""

    their_trials: int | None = None
    """Number of the first configurations that the tutorials' side runs (default: all). The rest is
    computed: as many seconds a trial, after the start, as those took on average."""

    out: Path | None = None
    """Folder to keep what both sides wrote."""

    only: str | None = None
    """Used by the program itself: the tutorials' side."""


def configurations() -> list[dict[str, Any]]:
    """Thirty-six, mixed so that the first four, six and eight are like the whole."""
    widths = (0, 128, 256, 512, 1024)
    pairs = list(product(range(6), (0.5, 1.0)))
    chosen = [pairs[(5 * number) % 12] for number in range(36)]
    return [
        {
            "model.unfreeze_depth": depth,
            "model.head_width": widths[number % 5],
            "augment.strength": strength,
        }
        for number, (depth, strength) in enumerate(chosen)
    ]


def base(job: Bench) -> TrainConfig:
    """What all trials share: without the moving average and flips, which tutorials lack."""
    changes = {"epochs": job.epochs, "model": FIXED, "optim": {"ema_decay": 0.0}}
    return override(get_preset("finetune"), changes, "bench")


def spatial_and_colour(strength: float) -> list[Any]:
    """The tutorials' transforms for the ranges and odds that our views have at this strength.

    The image is reflected beyond its edges before it is moved, since black corners would be
    another task than ours.
    """
    amount, border = 0.4 * strength, SIDE // 4
    shift = 0.15 * strength * SIDE / (SIDE + 2 * border)
    bilinear = transforms.InterpolationMode.BILINEAR
    return [
        transforms.RandomApply([transforms.ColorJitter(brightness=amount)], 0.8),
        transforms.RandomApply([transforms.ColorJitter(contrast=amount)], 0.8),
        transforms.Pad(border, padding_mode="reflect"),
        transforms.RandomApply([transforms.RandomRotation(20 * strength, bilinear)], 0.8),
        transforms.RandomAffine(
            0, (shift, shift), (1 / (1 + amount), 1 + amount), interpolation=bilinear
        ),
        transforms.CenterCrop(SIDE),
        transforms.RandomHorizontalFlip(strength / 2),
    ]


def tutorial_trial(config: dict[str, Any]) -> None:
    """A trial as the tutorials write it."""
    from ray import tune

    job: Bench = config["job"]
    settings = apply_params(base(job), config["params"], "bench")
    augmented = transforms.Compose(
        [
            transforms.Resize((SIDE, SIDE)),
            *spatial_and_colour(settings.augment.strength),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            transforms.RandomErasing(
                0.7 * settings.augment.strength, scale=(0.005, 0.08), ratio=(1, 1)
            ),
        ]
    )
    plain = transforms.Compose(
        [
            transforms.Resize((SIDE, SIDE)),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    folder = Path(config["folder"])
    torch.manual_seed(0)
    loader, held_out = (
        torch.utils.data.DataLoader(
            datasets.ImageFolder(str(folder / name), steps),
            batch_size=BATCH,
            shuffle=name == "train",
            num_workers=1,
        )
        for name, steps in (("train", augmented), ("validation", plain))
    )
    state = weights.load(job.weights).state()
    model = mobilenet.build(settings.model, 4, 0, state).to(memory_format=torch.contiguous_format)
    set_folding(model, False)
    optimizer = build_optimizer(model, settings.optim)
    for epoch in range(job.epochs):
        model.train()
        for step, (images, labels) in enumerate(loader):
            set_learning_rates(
                optimizer, learning_rates(settings, epoch * len(loader) + step, len(loader))
            )
            optimizer.zero_grad()
            smoothing = settings.optim.label_smoothing
            functional.cross_entropy(model(images), labels, label_smoothing=smoothing).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.optim.max_grad_norm)
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = sum(
                int((model(images).argmax(1) == labels).sum()) for images, labels in held_out
            )
        tune.report({"accuracy": right / len(held_out.dataset)})


def theirs(job: Bench, folder: Path) -> list[dict[str, float]]:
    """Seconds until each trial was done, and its accuracy, in the order in which they ended."""
    os.environ["PYTHONPATH"] = str(ROOT)
    began = time.time()
    import ray
    from ray import tune

    ray.init(include_dashboard=False, log_to_driver=False)
    done: list[dict[str, float]] = []

    class Clock(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            accuracy = trial.last_result["accuracy"]
            done.append({"seconds": time.time() - began, "accuracy": accuracy})

    trials = [
        {"job": job, "params": params, "folder": str(folder)}
        for params in configurations()[: job.their_trials or job.trials]
    ]
    tune.Tuner(
        tune.with_resources(lambda config: tutorial_trial(config["trial"]), {"CPU": 1}),
        param_space={"trial": tune.grid_search(trials)},
        run_config=tune.RunConfig(
            verbose=0, callbacks=[Clock()], storage_path=str(folder / "tune")
        ),
    ).fit()
    return done


def ours(job: Bench, dataset: Path, place: Path) -> list[dict[str, float]]:
    """The same, by tune.py; its clock starts before the process does."""
    settings = {"model": FIXED, "optim": {"ema_decay": 0.0}}
    (place / "base.yaml").write_text(yaml.safe_dump(settings))
    (place / "first.yaml").write_text(yaml.safe_dump(configurations()[: job.trials]))
    optim = get_preset("finetune").optim
    words = [sys.executable, str(ROOT / "ray_jobs/tune.py"), "--data", str(dataset)]
    words += ["--num-trials", str(job.trials), "--epochs", str(job.epochs), "--name", "bench"]
    words += ["--config", "base.yaml", "--first", "first.yaml", "--weights", job.weights]
    words += ["--scheduler", "none", "--confirm", "0", "0", "--no-final", "--concurrency", "2"]
    # Judged as the tutorials do: on one validation split, each trial to its end.
    words += ["--folds", "1", "--no-until-sure"]
    words += ["--vary", "model.unfreeze_depth=0,1,2,3,4,5", "augment.strength=0.5,1.0"]
    words += [f"optim.lr_head={optim.lr_head}", f"optim.lr_backbone={optim.lr_backbone}"]
    words += [f"optim.weight_decay={optim.weight_decay}", "optim.ema_decay=0.0"]
    words += [f"optim.label_smoothing={optim.label_smoothing}", "model.dropout=0.2"]
    environment = {**os.environ, "DRONE_ACTIVATION_CACHE": str(place / "features")}
    environment.pop("MLFLOW_TRACKING_URI", None)
    began = time.time()
    log = (place / "ours.log").open("w")
    subprocess.run(words, cwd=place, env=environment, check=True, stdout=log, stderr=log)
    records = [json.loads(file.read_text()) for file in (place / "studies/bench/trials").iterdir()]
    files = {
        record["number"]: (place / f"studies/bench/trials/{record['number']:04d}.json").stat()
        for record in records
    }
    done = [
        {
            "seconds": files[record["number"]].st_mtime - began,
            "accuracy": record["history"][-1]["metrics"]["validation/accuracy"],
        }
        for record in records
    ]
    return sorted(done, key=lambda trial: trial["seconds"])


def folders(raw: Path, dataset: Path, target: Path) -> Path:
    """The kept files of both splits as links, as ImageFolder wants them."""
    manifest = open_dataset(dataset).manifest
    for row in manifest[manifest["split"].isin(["train", "validation"])].itertuples():
        link = target / str(row.split) / str(row.class_name) / f"{row.Index}{Path(row.path).suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((raw / str(row.path)).resolve())
    return target


def seconds_of(done: list[dict[str, float]], count: int) -> float:
    """Seconds until so many trials were done; beyond those that ran, at their mean rate."""
    if count <= len(done):
        return done[count - 1]["seconds"]
    # Two at a time: the first two have only waited for the start and for themselves.
    rate_s = (done[-1]["seconds"] - done[1]["seconds"]) / (len(done) - 2)
    return done[-1]["seconds"] + rate_s * (count - len(done))


def main(job: Bench) -> None:
    """Prints the table."""
    if job.only is not None:
        print(json.dumps(theirs(replace(job, only=None), Path(job.only))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        place = (job.out or Path(temporary)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        raw = job.data or place / "raw"
        if job.data is None:
            write_raw_folder(raw, SynthSettings(images_per_class=100, mislabelled=0))
        settings = replace(PrepareSettings(), policy="first")
        if not (place / "dataset").exists():
            write_dataset(
                plan_dataset([raw], settings, map_sequentially), place / "dataset", map_sequentially
            )
        split = folders(raw, place / "dataset", place / "plain")
        fast = ours(job, place / "dataset", place)
        words = [sys.executable, __file__, "--only", str(split), "--weights", job.weights]
        words += ["--epochs", str(job.epochs), "--trials", str(job.trials)]
        if job.their_trials:
            words += ["--their-trials", str(job.their_trials)]
        slow = json.loads(
            subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[
                -1
            ]
        )
        print("trials   theirs s   ours s   ratio")
        for count in sorted({4, 8, 16, job.trials}):
            if count <= job.trials:
                their_s, our_s = seconds_of(slow, count), fast[count - 1]["seconds"]
                print(f"{count:6}   {their_s:8.0f}   {our_s:6.0f}   {their_s / our_s:5.1f}")
        means = [sum(trial["accuracy"] for trial in side) / len(side) for side in (slow, fast)]
        print(f"mean validation accuracy: theirs {means[0]:.4f}, ours {means[1]:.4f}")


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
