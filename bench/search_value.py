"""What a search is worth: the test scores of what it finds, over six tasks and several splits.

    python bench/search_value.py --shared FOLDER --weights FILE
    python bench/search_value.py --shared FOLDER --weights FILE --tasks noisy few --splits 3

Four methods: the preset; the best of N trials by the plain validation split, with TPE and
successive halving; one epoch of N random configurations, then all epochs of the best few (Egele et
al. 2023); and `tune.py` as it is by default. The two studies are the job as a user types it. What
a method chose is trained in this process and predicts the test split, which nothing else reads.

How well a score ranks configurations is measured apart ("rank"): the trials of a study are trained
on all folds, on the plain training split, and as a final model; the rank correlations with the test
accuracy and log-loss of the last are those of the study's score, and of the validation macro F1.

Each cell (task, split, method) lies in a file of --out; stopped and typed again, the program
resumes. At the end, and with --table alone, the table as Markdown.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import optuna
import pandas as pd
import torch
import tyro
import yaml
from numpy.typing import NDArray
from scipy.stats import spearmanr

from bench.search_tasks import Tasks
from drone.config import override
from drone.data.dataset import Dataset, Split
from drone.evaluation.batch_inference import predict_in_batches
from drone.evaluation.calibration import fit_temperature
from drone.model import mobilenet
from drone.model.export import Served
from drone.model.weights import load
from drone.presets import get_preset
from drone.search import space
from drone.search.scorer import Scorer
from drone.search.scoring import HeldOut
from drone.search.study import Study
from drone.serving.predictor import apply_temperature
from drone.training.activation_cache.store import CacheSpec
from drone.training.config import TrainConfig
from drone.training.context import LocalContext
from drone.training.data import TrainingData
from drone.training.loop import fit
from drone.workflows.model_logging import load_best_model
from drone.workflows.search_trials import final_config

METHODS = ("preset", "validation", "one-epoch", "ours")
CELLS = (*METHODS, "rank")
# What test says of a model that was ranked.
TESTS = ("accuracy", "log_loss")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Arguments."""

    shared: Path
    """Folder with the raw folders drones and multires."""

    weights: Path
    """Starting weights."""

    tasks: tuple[str, ...] = ("drones", "few", "noisy", "grey64", "drawn", "mixed")
    splits: int = 3
    trials: int = 30
    cells: tuple[str, ...] = CELLS
    ranked: int = 8
    """Configurations that are ranked."""

    out: Path = Path("search-value")
    table: bool = False
    """Print the table of what there is, and measure nothing."""


@dataclass(frozen=True)
class Cell:
    """One method on one split of one task."""

    bench: Bench
    dataset: Dataset
    task: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where its studies and results lie."""
        return self.bench.out / self.task / f"results-{self.seed}"

    @property
    def cache(self) -> CacheSpec:
        """The activation cache, which the methods of a task share."""
        return CacheSpec(folder=self.bench.out.resolve() / self.task / "cache", disk_gb=20)

    def train_and_test(self, config: TrainConfig) -> dict[str, Any]:
        """Trains a configuration; its test and validation scores, and test probabilities."""
        data = TrainingData.of(self.dataset, None, config.train_on)
        state = load(str(self.bench.weights)).state()
        model = mobilenet.build(config.model, len(data.classes), config.seed, state)
        with tempfile.TemporaryDirectory() as folder:
            context = LocalContext(Path(folder), max_checkpoints=1)
            cache = self.cache if config.model.cut > 0 else None
            fit(config, data, model, context, cache)
            best = load_best_model(
                max(Path(folder).glob("checkpoint_*")), config, len(data.classes)
            )
        probs = predict(best, self.dataset.split("test"))
        temperature = config.calibration.temperature
        if not temperature:
            validation = self.dataset.split("validation")
            temperature = fit_temperature(predict(best, validation), validation.labels_N)
        return scores(apply_temperature(probs, temperature), self.dataset.split("test").labels_N)

    def tune(self, name: str, num_trials: int, *flags: object) -> tuple[TrainConfig, float]:
        """Runs a study without its final model; what it chose, and its seconds."""
        place = self.folder.resolve()
        words = [sys.executable, str(ROOT / "ray_jobs" / "tune.py")]
        if (place / "studies" / name).exists():
            words += ["--resume", name]
        else:
            words += ["--data", str(self.dataset.folder.resolve()), "--name", name]
            words += ["--num-trials", str(num_trials)]
            words += ["--weights", str(self.bench.weights.resolve()), *map(str, flags)]
        words += ["--no-final", "--activation-cache", str(self.cache.folder)]
        words += ["--activation-cache-gb", str(self.cache.disk_gb), "--json"]
        began = time.monotonic()
        log = (place / f"{name}.log").open("a")
        done = subprocess.run(
            words, cwd=place, check=True, text=True, stdout=subprocess.PIPE, stderr=log
        )
        best = json.loads(done.stdout.splitlines()[-1])["best"]
        content = yaml.safe_load(Path(best["config"]).read_text())
        return override(TrainConfig(), content, "best.yaml"), time.monotonic() - began


def scores(probs_NK: NDArray[np.float32], labels_N: NDArray[np.int64]) -> dict[str, Any]:
    """Accuracy, log-loss, and what each image got."""
    right_N = probs_NK[np.arange(len(labels_N)), labels_N]
    return {
        "accuracy": float((probs_NK.argmax(axis=1) == labels_N).mean()),
        "log_loss": float(-np.log(np.maximum(right_N, 1e-12)).mean()),
        "right": (probs_NK.argmax(axis=1) == labels_N).tolist(),
    }


def predict(model: mobilenet.Classifier, split: Split) -> NDArray[np.float32]:
    """Probabilities of a split."""
    served = Served(model).eval()

    @torch.no_grad()
    def run(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        probs_NK: NDArray[np.float32] = served(torch.from_numpy(pixels_NHWC)).numpy()
        return probs_NK

    return predict_in_batches(run, split.sides_N, split.gather)


def preset(cell: Cell) -> dict[str, Any]:
    """The preset as it is."""
    began = time.monotonic()
    result = cell.train_and_test(replace(get_preset("finetune"), seed=cell.seed))
    return {**result, "seconds": time.monotonic() - began}


def validation(cell: Cell) -> dict[str, Any]:
    """The best of the trials by the plain validation split."""
    flags = ["--folds", 1, "--scheduler", "asha", "--objective", "macro_f1", "--epochs", 12]
    flags += ["--confirm", 0, 0, "--no-until-sure", "--final-on", "train", "--seed", cell.seed]
    return _study(cell, "validation", *flags)


def ours(cell: Cell) -> dict[str, Any]:
    """A study as it is by default."""
    return _study(cell, "ours", "--seed", cell.seed)


def _study(cell: Cell, name: str, *flags: object) -> dict[str, Any]:
    config, seconds = cell.tune(name, cell.bench.trials, *flags)
    began = time.monotonic()
    result = cell.train_and_test(config)
    return {**result, "seconds": seconds + time.monotonic() - began}


def ranks(cell: Cell) -> dict[str, Any]:
    """Rank correlations of two scores of whole trials with what test says of their finals."""
    began = time.monotonic()
    flags = ["--scheduler", "none", "--no-until-sure", "--seed", cell.seed]
    cell.tune("rank", cell.bench.ranked, *flags)
    study = Study(cell.folder / "studies" / "rank")
    spec = study.read_spec()
    scorer = Scorer(HeldOut.of(cell.dataset, spec.folds), spec.objective, spec.base.epochs)
    folds, split, accuracy, log_loss = [], [], [], []
    for record in study.records("trials"):
        if record.state != "finished" or record.score is None:
            continue
        config = space.apply_params(spec.base, record.params, "trial")
        final = final_config(spec, record, scorer, "train+validation")
        folds.append(-record.score)
        split.append(_on_validation(cell, config))
        result = cell.train_and_test(final)
        accuracy.append(result["accuracy"])
        log_loss.append(-result["log_loss"])
    rank = {
        f"rank_{name}_{measure}": float(spearmanr(values, test).statistic)
        for name, values in (("folds", folds), ("split", split))
        for measure, test in zip(TESTS, (accuracy, log_loss), strict=True)
    }
    values = {"folds": folds, "split": split, "accuracies": accuracy, "log_losses": log_loss}
    return {**rank, **values, "seconds": time.monotonic() - began}


def one_epoch(cell: Cell) -> dict[str, Any]:
    """One epoch of random configurations, then all epochs of the best few."""
    began = time.monotonic()
    base = replace(get_preset("finetune"), seed=cell.seed)
    configs = list(_random_configs(base, cell.bench.trials))
    first = [_on_validation(cell, replace(config, stop_epoch=1)) for config in configs]
    order = np.argsort([-score for score in first])[: max(3, len(configs) // 10)]
    whole = [(_on_validation(cell, configs[number]), int(number)) for number in order]
    result = cell.train_and_test(configs[max(whole)[1]])
    return {**result, "seconds": time.monotonic() - began}


def _on_validation(cell: Cell, config: TrainConfig) -> float:
    """Validation macro F1 of a configuration at its best epoch."""
    data = TrainingData.of(cell.dataset)
    state = load(str(cell.bench.weights)).state()
    model = mobilenet.build(config.model, len(data.classes), config.seed, state)
    with tempfile.TemporaryDirectory() as folder:
        cache = cell.cache if config.model.cut > 0 else None
        history = fit(config, data, model, LocalContext(Path(folder)), cache)
    return max(entry["metrics"]["validation/macro_f1"] for entry in history)


def _random_configs(base: TrainConfig, count: int) -> Iterator[TrainConfig]:
    """The preset, then random configurations of the default space."""
    yield base
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=base.seed))
    for _ in range(count - 1):
        params = space.suggest_params(space.DEFAULT, base, study.ask())
        yield space.apply_params(base, params, "random")


def measure(bench: Bench, tasks: Tasks) -> None:
    """Measures the cells that are missing."""
    runs = {
        "preset": preset,
        "validation": validation,
        "one-epoch": one_epoch,
        "ours": ours,
        "rank": ranks,
    }
    for seed in range(bench.splits):
        for task in bench.tasks:
            cell = Cell(bench, tasks.dataset(task, seed), task, seed)
            cell.folder.mkdir(parents=True, exist_ok=True)
            for method in bench.cells:
                file = cell.folder / f"{method}.json"
                if file.exists():
                    continue
                result = runs[method](cell)
                aside = file.with_suffix(".part")
                aside.write_text(json.dumps(result))
                aside.rename(file)
                figures = [
                    f"{name} {value:.4f}"
                    for name, value in result.items()
                    if isinstance(value, float)
                ]
                print(f"{task} {seed} {method}: {', '.join(figures)}", flush=True)


def read(bench: Bench) -> pd.DataFrame:
    """A row per cell."""
    return pd.DataFrame(
        [
            {
                "task": file.parent.parent.name,
                "seed": int(file.parent.name.rpartition("-")[2]),
                "method": file.stem,
                **json.loads(file.read_text()),
            }
            for file in sorted(bench.out.glob("*/results-*/*.json"))
        ]
    )


def gain(cells: pd.DataFrame) -> str:
    """Points of accuracy over the preset, paired by image, with the 95 % interval over images."""
    first = cells[cells["method"] == "preset"].set_index("seed")["right"]
    rest = cells[cells["method"] != "preset"].set_index("seed")["right"]
    common = [seed for seed in rest.index if seed in first.index]
    if not common:
        return ""
    difference = np.concatenate(
        [np.subtract(rest[seed], first[seed], dtype=float) for seed in common]
    )
    drawn = np.random.default_rng(0).choice(difference, (2000, len(difference))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{100 * difference.mean():+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def markdown(cells: pd.DataFrame, tasks: Sequence[str]) -> str:
    """The table."""
    lines = [
        "| task | method | accuracy | over the preset, points | log-loss | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for task in tasks:
        for method in METHODS:
            own = cells[(cells["task"] == task) & (cells["method"] == method)]
            if own.empty:
                continue
            both = cells[(cells["task"] == task) & cells["method"].isin(["preset", method])]
            lines.append(
                f"| {task} | {method} | {own['accuracy'].mean():.3f} | "
                f"{gain(both) if method != 'preset' else ''} | {own['log_loss'].mean():.3f} | "
                f"{own['seconds'].mean():.0f} |"
            )
    lines += [
        "",
        "| task | rank correlation with test accuracy: folds | split | log-loss: folds | split |",
        "|---|---|---|---|---|",
    ]
    for task in tasks:
        own = cells[(cells["task"] == task) & (cells["method"] == "rank")]
        if not own.empty:
            names = [f"rank_{name}_{test}" for test in TESTS for name in ("folds", "split")]
            lines.append(f"| {task} | {' | '.join(f'{own[name].mean():.2f}' for name in names)} |")
    return "\n".join(lines)


def main(bench: Bench) -> None:
    """Measures what is missing, and prints the table."""
    if not bench.table:
        measure(bench, Tasks(bench.shared, bench.out))
    text = markdown(read(bench), bench.tasks)
    (bench.out / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
