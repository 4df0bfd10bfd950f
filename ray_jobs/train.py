"""Trains a preset on a data set, on one worker or many, and logs the run and its model to MLflow.

    python ray_jobs/train.py finetune --data data/drones                       (a laptop)
    python ray_jobs/train.py finetune --data data/drones --num-workers 4       (a box with 4 GPUs)
    python ray_jobs/train.py --resume RUN                                      (a stopped run)
    python ray_jobs/train.py finetune --data data/more --from-run RUN          (more classes)
    RAY_ADDRESS=auto python ray_jobs/train.py finetune --data /shared/drones --storage /shared/runs
                                                                      (on the head of a cluster)

Ctrl-C writes a checkpoint and ends the run as KILLED; --resume continues the same run.
"""

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
ROOTS = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(root for root in ROOTS if (root / "drone").is_dir())))

from ray_jobs import bug_report

bug_report.install(__name__)

import tyro

from drone.commands import command
from drone.config import differing, flatten, override, to_dict
from drone.errors import ConfigError
from drone.presets import PRESETS, get_preset
from drone.settings_file import read_yaml
from drone.training.config import TrainConfig
from ray_jobs import cli, console


@dataclass(frozen=True, kw_only=True)
class Train:
    """Arguments of the job."""

    data: str
    """Data set written by prepare.py: a folder or a URI such as s3://bucket/drones; not needed with
    --resume."""

    weights: str = field(default_factory=cli.default_weights)
    """Starting weights: imagenet (downloaded once), none (random) or a file; DRONE_WEIGHTS sets
    another default."""

    from_run: str | None = None
    """Run whose trained weights are the starting weights, in place of --weights, by id or name: for
    a data set with more images, or with classes added or removed; rows of the head are kept by
    class."""

    class_weights: str | None = None
    """Weights of the classes in the loss: none, balanced (all classes count equally) or a YAML file
    with a weight per class name (default: the preset's)."""

    num_workers: int | None = None
    """Number of processes that share each batch (default: one per GPU, else one)."""

    min_workers: int | None = None
    """Minimum number of workers to continue with while machines are missing (default:
    --num-workers)."""

    gpus_per_worker: float | None = None
    """GPUs per worker (default: one, if there are any)."""

    resume: str | None = None
    """Run to resume, by id or name; it keeps its settings and its data set (--data names the new
    place of one that has moved)."""

    config: Path | None = None
    """YAML file of settings that replace the preset's; flags replace both."""

    name: str | None = None
    """Name of the run in MLflow (default: preset and seed)."""

    experiment: str = "drone"
    """Experiment in MLflow."""

    storage: str = field(default_factory=cli.default_storage)
    """Folder or URI for checkpoints; DRONE_STORAGE sets another default."""

    max_failures: int = 3
    """Maximum number of worker failures before the run fails."""

    activation_cache: Path = field(default_factory=cli.default_activation_cache)
    """Local folder of the activation cache; DRONE_ACTIVATION_CACHE sets another default."""

    activation_cache_gb: float = 10.0
    """Maximum size of the activation cache in GB; 0 disables it."""

    doctor: bool = True
    """Check every machine of a cluster first."""

    json: bool = False
    """Print the result as one JSON object, last."""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


def parse(arguments: Sequence[str]) -> Train:
    """Parses the command line: a preset, then flags."""
    # By hand: in tyro an argument cannot choose the defaults of the others.
    preset, flags = None, arguments
    if arguments and not arguments[0].startswith("-"):
        preset, flags = arguments[0], arguments[1:]
    resumes = any(flag.split("=")[0] == "--resume" for flag in flags)
    helps = "--help" in flags or "-h" in flags
    if preset is None and not resumes and not helps:
        raise ConfigError(f"Name a preset first: {', '.join(PRESETS)}. See --help.")
    settings = get_preset(preset or "finetune")
    # Read before the flags, whose defaults it sets: a flag must win over the file.
    file = cli.value_of("--config", flags)
    if file is not None:
        settings = override(settings, read_yaml(Path(file)), file)
    # A resumed run has a data set of its own, so that --data is not required then.
    default = Train(data="" if resumes else tyro.MISSING, train=settings)
    # The preset is the first argument, and not a flag as well.
    job = cli.from_flags(Train, flags, _help(), default=default, hidden=("preset",))
    if resumes:
        _check_resumed(job, default, preset)
    return job


def _check_resumed(job: Train, default: Train, preset: str | None) -> None:
    """Refuses what a resumed run would ignore, since it keeps its own."""
    given = [] if preset is None else [f"the preset {preset}"]
    changed = [
        name
        for name in ("weights", "from_run", "class_weights", "config", "name", "storage")
        if getattr(job, name) != getattr(default, name)
    ]
    changed += flatten(differing(to_dict(job.train), to_dict(default.train)))
    given += [f"--{name.replace('_', '-')}" for name in changed]
    if given:
        raise ConfigError(
            f"Cannot change {', '.join(given)} with --resume: the run keeps what it was started "
            f"with. Leave that out, or start a new run."
        )


def _help() -> str:
    indent = " " * 21
    presets = "\n".join(
        textwrap.fill(f"    {name:<16} {preset.about}", 100, subsequent_indent=indent)
        for name, preset in PRESETS.items()
    )
    return (
        f"{__doc__}\nThe first argument is a preset, a named configuration; flags change single "
        f"settings of it:\n{presets}\n"
    )


def main(job: Train) -> cli.Result:
    """Runs the job."""
    # Imported late: it takes seconds, for which --help and wrong usage should not wait.
    from drone.storage.filesystem import absolute
    from drone.training.activation_cache.store import CacheSpec
    from drone.workflows import training
    from drone.workflows.run_spec import RunSpec

    folder = Path(absolute(str(job.activation_cache)))
    resources = training.Resources(
        num_workers=job.num_workers,
        min_workers=job.min_workers,
        gpus_per_worker=job.gpus_per_worker,
        max_failures=job.max_failures,
        cache=CacheSpec(folder=folder, disk_gb=job.activation_cache_gb),
        check_cluster=job.doctor,
    )
    display = console.ConsoleDisplay()
    if job.resume:
        result = training.resume(
            job.resume,
            resources,
            data=job.data or None,
            experiment=job.experiment,
            display=display,
        )
    else:
        spec = RunSpec(
            config=job.train,
            data=job.data,
            weights=job.weights,
            from_run=job.from_run or "",
            storage=job.storage,
        )
        result = training.train(
            spec,
            resources,
            name=job.name,
            class_weights=job.class_weights,
            experiment=job.experiment,
            display=display,
        )
    best = result.best
    trained = f"Trained on training and validation images for {best['epoch']:.0f} epochs."
    if "macro_f1" in best:
        trained = f"Best epoch {best['epoch']:.0f}: macro F1 {best['macro_f1']:.4f} on validation."
    console.show(
        trained,
        f"Next: {command('evaluate', run=result.run_id)}",
    )
    return vars(result)


if __name__ == "__main__":
    cli.start(parse, main)
