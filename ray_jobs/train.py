"""Trains a preset on a data set, on one worker or many, and logs the run and its model to MLflow.

    python ray_jobs/train.py finetune --data data/drones                       (a laptop)
    python ray_jobs/train.py finetune --data data/drones --num-workers 4       (a box of 4 GPUs)
    python ray_jobs/train.py --resume RUN                                      (a stopped run)
    RAY_ADDRESS=auto python ray_jobs/train.py finetune --data /shared/drones --storage /shared/runs
                                                                      (on the head of a cluster)

Ctrl-C writes a checkpoint and ends the run as KILLED; --resume goes on in the same run.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
PLACES = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(place for place in PLACES if (place / "drone").is_dir())))

import tyro
import yaml

from drone.config import override
from drone.errors import ConfigError
from drone.presets import PRESETS, get
from drone.training.config import TrainConfig
from ray_jobs import cli, doctor


@dataclass(frozen=True, kw_only=True)
class Train:
    """Arguments of the job."""

    data: str
    """Data set that prepare.py wrote: a folder or a URI such as s3://bucket/drones."""

    weights: str = field(default_factory=lambda: os.environ.get("DRONE_WEIGHTS", "imagenet"))
    """imagenet (downloaded once), none (random) or a file; DRONE_WEIGHTS sets another default."""

    num_workers: int | None = None
    """Processes that share each batch; by default one for each GPU, else one."""

    min_workers: int | None = None
    """Go on with fewer, down to these, while machines are missing; by default wait for all."""

    gpus_per_worker: float | None = None
    """GPUs of each worker; by default one if there are any."""

    resume: str | None = None
    """Run to go on with, by id or name; its settings and data set are taken from it."""

    config: Path | None = None
    """YAML file of settings that replace the preset's; flags replace both."""

    name: str | None = None
    """Name of the run in MLflow; by default preset and seed."""

    experiment: str = "drone"
    """Experiment in MLflow."""

    storage: str = field(default_factory=cli.storage)
    """Folder or URI for checkpoints; DRONE_STORAGE sets another default."""

    max_failures: int = 3
    """How often lost workers are replaced before the run fails."""

    features: Path = field(default_factory=cli.features_folder)
    """Local folder for activations of frozen blocks; DRONE_FEATURES sets another default."""

    features_disk: float = 10.0
    """The most that it may take, in GB; 0 keeps nothing."""

    doctor: bool = True
    """On a cluster, look at every machine first."""

    json: bool = False
    """Print the result as one JSON object, last."""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


def parse(words: Sequence[str]) -> Train:
    """The command line: a preset, then flags."""
    preset, rest = (words[0], words[1:]) if words and words[0][0] != "-" else (None, words)
    resumes = any(word.split("=")[0] == "--resume" for word in rest)
    helps = "--help" in rest or "-h" in rest
    if preset is None and not resumes and not helps:
        raise ConfigError(f"Name a preset first: {', '.join(PRESETS)}. See --help.")
    settings = get(preset or "finetune")
    file = _value_of("--config", rest)
    if file is not None:
        settings = override(settings, read_yaml(Path(file)), file)
    default = Train(data="" if resumes else tyro.MISSING, train=settings)
    return tyro.cli(Train, args=rest, default=default, description=_help())


def _help() -> str:
    presets = "\n".join(f"    {name:<16} {preset.about}" for name, preset in PRESETS.items())
    return f"{__doc__}\nThe first word is a preset:\n{presets}\n"


def _value_of(flag: str, words: Sequence[str]) -> str | None:
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def read_yaml(file: Path, kind: type = dict) -> Any:
    """Settings by name from a file, or a list of them.

    Raises:
        ConfigError: it cannot be read or holds none.
    """
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    entries = content if isinstance(content, list) else [content]
    if not isinstance(content, kind) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{file} holds no {'list of ' if kind is list else ''}settings by name.")
    return content


def main(job: Train) -> cli.Result:
    """Runs the job."""
    from drone.adapters import dataset_cache, ray_cluster, storage, training_run
    from drone.adapters import mlflow_tracking as tracking
    from drone.model import weights
    from drone.training.features import Reuse
    from ray_jobs.watch import Watch

    store = tracking.connect(job.experiment)
    run_id, name = None, job.name or f"{job.train.preset}-s{job.train.seed}"
    if job.resume:
        run_id, name = training_run.resumable(job.resume)
        plan = training_run.plan_of(run_id)
    else:
        place = storage.resolve(job.storage)
        plan = training_run.Plan(
            config=job.train, data=job.data, weights=job.weights, storage=place
        )
    dataset = dataset_cache.open_at(
        plan.data, say=cli.console.print, at_bins=plan.config.model.mixed
    )
    started = weights.load(plan.weights)
    if started.pretrained == "none":
        warn(
            "Starting from random weights: expect far lower scores than with ImageNet weights. "
            "The run is tagged pretrained=none."
        )
    with tracking.tracked(name, warn, run_id) as run:
        cli.console.print(f"Run {run.name} ({run.run_id}) in {store}", soft_wrap=True)
        if run_id is None:
            plan = replace(plan, storage=f"{plan.storage}/{run.run_id}")
            cli.console.print(training_run.describe(run, plan, dataset, started))
        resources = training_run.Resources(
            num_workers=job.num_workers,
            min_workers=job.min_workers,
            gpus_per_worker=job.gpus_per_worker,
            max_failures=job.max_failures,
            reuse=Reuse(folder=job.features.expanduser().resolve(), disk_gb=job.features_disk),
        )
        known = training_run.known_history(plan)
        with ray_cluster.connected(), Watch(plan.config.epochs, known) as watch:
            if job.doctor:
                doctor.before(store, plan.storage, plan.data, dataset, started, job.features)
            training_run.train(
                run, plan, dataset.fingerprint, started, resources, watch, cli.console.print
            )
        finished = training_run.finish(run, plan, dataset, cli.console.print)
    best = finished.best
    cli.console.print(
        f"Best epoch {best['epoch']:.0f}: macro F1 {best['macro_f1']:.4f} on validation.\n"
        f"Next: python ray_jobs/evaluate.py --run {run.run_id}",
        soft_wrap=True,
    )
    return {
        "run_id": run.run_id,
        "run_name": run.name,
        "model_uri": finished.model_uri,
        "best": best,
    }


def warn(text: str) -> None:
    """A warning for a person."""
    cli.console.print(f"[bold yellow]{text}[/]")


if __name__ == "__main__":
    cli.start(parse, main)
