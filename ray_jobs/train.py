"""Trains a preset on a data set, on one worker or many, and logs the run and its model to MLflow.

    python ray_jobs/train.py finetune --data data/drones                          (a laptop)
    python ray_jobs/train.py finetune --data data/drones --num-workers 4          (a box of 4 GPUs)
    ray submit cluster.yaml ray_jobs/train.py -- finetune --data /shared/drones   (a cluster)
    python ray_jobs/train.py --resume RUN                                         (a stopped run)

Ctrl-C writes a checkpoint and ends the run as KILLED; --resume goes on in the same run.
"""

import datetime
import json as jsonlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
PLACES = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(place for place in PLACES if (place / "drone").is_dir())))

import tyro
import yaml

from drone.config import flatten, override, to_dict
from drone.errors import ConfigError, RunError
from drone.presets import PRESETS, get
from drone.training.config import TrainConfig
from ray_jobs import cli


@dataclass(frozen=True, kw_only=True)
class Train:
    """Arguments of the job."""

    data: Path
    """Data set that prepare.py wrote."""

    weights: str = field(default_factory=lambda: os.environ.get("DRONE_WEIGHTS", "imagenet"))
    """imagenet (downloaded once), none (random) or a file; DRONE_WEIGHTS sets another default."""

    num_workers: int | None = None
    """Processes that share each batch; by default one for each GPU, else one."""

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

    storage: str = "runs"
    """Folder or URI for checkpoints; with several nodes one that all of them reach."""

    max_failures: int = 3
    """How often lost workers are replaced before the run fails."""

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
        settings = override(settings, _read_yaml(Path(file)), file)
    default = Train(data=Path() if resumes else tyro.MISSING, train=settings)
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


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {file} holds no settings by name.")
    return content


def main(job: Train) -> cli.Result:
    """Runs the job."""
    from drone.adapters import mlflow_tracking as tracking
    from drone.adapters import ray_cluster, storage
    from drone.data.dataset import open_dataset
    from drone.model import weights

    store = tracking.connect(job.experiment)
    run_id, place = None, storage.resolve(job.storage)
    if job.resume:
        run_id, job, place = _taken_from_run(job)
    dataset = open_dataset(job.data)
    started = weights.load(job.weights)
    if started.pretrained == "none":
        cli.console.print(
            "[bold yellow]Starting from random weights (--weights none): expect far lower scores "
            "than with ImageNet weights. The run is tagged pretrained=none.[/]"
        )
    name = job.name or f"{job.train.preset}-s{job.train.seed}"
    warn = lambda text: cli.console.print(f"[yellow]{text}[/]")  # noqa: E731
    with tracking.tracked(name, warn, run_id) as run:
        cli.console.print(f"Run {run.name} ({run.run_id}) in {store}")
        place = f"{place}/{run.run_id}" if run_id is None else place
        if run_id is None:
            _describe(run, job, dataset, started, place)
        with ray_cluster.connected():
            checkpoint = _train(run, job, dataset.folder, started, place)
        return _finish(run, job, dataset, checkpoint)


def _taken_from_run(job: Train) -> tuple[str, Train, str]:
    """The run to resume, the job as it was started, and where its checkpoints are."""
    from drone.adapters import mlflow_model
    from drone.adapters import mlflow_tracking as tracking

    assert job.resume is not None
    found = tracking.find_run(job.resume)
    run_id, status = found.info.run_id, found.info.status
    if status == "FINISHED":
        raise RunError(f"Run {job.resume} is finished; there is nothing to resume.")
    with tempfile.TemporaryDirectory() as temporary:
        try:
            launch = mlflow_model.read_json(run_id, "launch.json", Path(temporary))
        except RunError as error:
            raise RunError(
                f"Run {job.resume} cannot be resumed: it did not get as far as training. "
                f"Start it anew."
            ) from error
    config = override(get("finetune"), launch["config"], f"run {run_id}")  # type: ignore[arg-type]
    job = replace(
        job,
        train=config,
        data=Path(str(launch["data"])),
        weights=str(launch["weights"]),
        name=found.info.run_name,
    )
    return run_id, job, str(launch["storage"])


def _describe(run, job, dataset, started, place):  # type: ignore[no-untyped-def]
    """Logs all that decides the run before it begins."""
    from drone.model import mobilenet

    model = mobilenet.build(job.train.model, len(dataset.classes), job.train.seed, started.state())
    counts = model.parameter_counts()
    cli.console.print(
        f"{counts.total:,} parameters, {counts.trainable:,} of them learn; "
        f"data set {dataset.fingerprint[:12]}"
    )
    run.log_params(flatten(to_dict(job.train)))
    run.log_params({"parameters": counts.total, "parameters_trainable": counts.trainable})
    run.log_tags(
        {
            "preset": job.train.preset,
            "pretrained": started.pretrained,
            "weights_sha256": started.sha256,
            "fingerprint": dataset.fingerprint,
            "commit": commit(),
            "classes": jsonlib.dumps(dataset.classes),
        }
    )
    run.log_dataset(dataset)
    launch = {
        "config": to_dict(job.train),
        "data": str(dataset.folder.resolve()),
        "weights": job.weights if job.weights in ("imagenet", "none") else str(Path(job.weights).resolve()),
        "storage": place,
    }
    run.log_text(jsonlib.dumps(launch, indent=1), "launch.json")


def commit() -> str:
    """The git commit of the program, or "unknown"."""
    root = Path(__file__).resolve().parent
    try:
        words = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _train(run, job, data, started, place):  # type: ignore[no-untyped-def]
    """Trains what is left and fetches the last checkpoint."""
    from drone.adapters import ray_train, storage
    from drone.training.checkpoint import read_position
    from ray_jobs.watch import Watch

    stored = storage.newest(place)
    known = []
    if stored:
        with tempfile.TemporaryDirectory() as temporary:
            known = read_position(storage.fetch(stored.place, Path(temporary)))[0].history
        cli.console.print(f"Going on from epoch {stored.epoch}, step {stored.batch}")
    if stored is None or stored.epoch < job.train.epochs:
        workers = ray_train.choose_workers(job.num_workers, job.gpus_per_worker)
        run.log_tags({"num_workers": workers.count, "gpus_per_worker": workers.gpus})
        launch = ray_train.Launch(
            config=job.train,
            data=data.resolve(),
            weights=started,
            workers=workers,
            storage=place,
            attempt=f"attempt_{datetime.datetime.now():%Y%m%d_%H%M%S}",
            resume=stored.place if stored else None,
            max_failures=job.max_failures,
            commit=commit(),
        )
        with Watch(job.train.epochs) as watch:
            watch.skip(known)
            latest = [known]

            def on_history(history):  # type: ignore[no-untyped-def]
                latest[0] = history
                watch.history(history)
                run.log_history(history)

            listener = ray_train.Listener(
                on_progress=watch.progress,
                on_history=on_history,
                on_wait=lambda: run.log_history(latest[0]),
            )
            ray_train.train(launch, listener)
        stored = storage.newest(place)
    if stored is None:
        raise RunError(f"No checkpoint was found in {place}; the storage is not shared or full.")
    return storage.fetch(stored.place, Path(tempfile.mkdtemp(prefix="drone-")) / "checkpoint")


def _finish(run, job, dataset, checkpoint):  # type: ignore[no-untyped-def]
    """Logs what is left: all epochs, the best one, the model."""
    from drone.adapters import mlflow_model
    from drone.training.checkpoint import read_position

    position, _ = read_position(checkpoint)
    run.catch_up(position.history)
    best = position.best
    run.log_summary({f"best/{name}": value for name, value in best.items()})
    cli.console.print("Exporting the model ...")
    metadata = {"run_id": run.run_id, "preset": job.train.preset}
    uri = mlflow_model.deliver(checkpoint, job.train, dataset, metadata)
    cli.console.print(
        f"Best epoch {best['epoch']:.0f}: macro F1 {best['macro_f1']:.4f} on validation. "
        f"Next: python ray_jobs/evaluate.py --run {run.run_id} --data {dataset.folder}"
    )
    return {"run_id": run.run_id, "run_name": run.name, "model_uri": uri, "best": best}


if __name__ == "__main__":
    cli.start(parse, main)
