"""Searches for the best way to fine-tune on a data set, and hands the model to the registry.

    python ray_jobs/tune.py --data data/drones --num-trials 30                       (a laptop)
    python ray_jobs/tune.py --data data/drones --gpus-per-worker 0.25                (a GPU box)
    python ray_jobs/tune.py --data data/drones --vary augment.strength=1 optim.lr_head=1e-4..1e-2
    python ray_jobs/tune.py --resume STUDY --add-trials 20
    RAY_ADDRESS=auto python ray_jobs/tune.py --data /shared/drones --storage /shared/studies
                                                                      (on the head of a cluster)

Trials are chosen by Optuna from those before and judged by macro F1 on validation; the test split
is read once, by the final model. The best configurations and the preset are trained anew with other
seeds and validated on pictures that did not choose them (--confirm K S); the surest is trained once
more, evaluated, registered and, if it passes the gate, promoted. Everything is under one parent run
in MLflow and in the study's folder.
"""

import datetime
import hashlib
import json
import os
import sys
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
PLACES = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(place for place in PLACES if (place / "drone").is_dir())))

from typing import Any, Literal

from drone.config import differing, override, to_dict
from drone.errors import ConfigError, RunError
from drone.presets import get
from drone.search import space
from drone.search.study import STUDY_FILE, Settings, Study
from drone.training.config import TrainConfig
from ray_jobs import cli, doctor, evaluate, promote, train

_OF_A_NEW_STUDY = {"data", "num_trials", "preset", "config", "epochs", "views", "seed", "vary"}
_OF_A_NEW_STUDY |= {"space", "first", "scheduler", "name", "weights", "storage"}
"""Arguments that a study keeps from its beginning."""


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Arguments of the job."""

    data: str | None = None
    """Data set that prepare.py wrote: a folder or a URI such as s3://bucket/drones."""

    num_trials: int = 30
    """Trials of the study."""

    preset: str = "finetune"
    """Where the settings that are not searched come from."""

    config: Path | None = None
    """YAML file of settings that replace the preset's, as train.py takes it."""

    epochs: int | None = None
    """Of each trial; by default the preset's."""

    views: int | None = None
    """Different views of each picture; fewer than epochs save time and disk."""

    seed: int | None = None
    """Of the study and its trials; by default the preset's."""

    vary: tuple[str, ...] = ()
    """Changes of the space: NAME=VALUE fixes a setting, NAME=A,B,C and NAME=LOW..HIGH narrow it."""

    space: Path | None = None
    """YAML file of such changes: a value, a list, or low, high and log by name."""

    first: Path | None = None
    """YAML list of settings to try first, each by name; by default the preset's own."""

    scheduler: Literal["asha", "median", "none"] = "asha"
    """What ends hopeless trials early: successive halving, the median of the others, nothing."""

    time_budget_min: float | None = None
    """No trial begins after these minutes; those that run end as usual, and the winner is confirmed
    and trained after them."""

    confirm: tuple[int, int] = (3, 3)
    """Train the best K configurations, and the preset, anew S times; 0 0 takes the best trial's."""

    final: bool = True
    """Train the winner once more, evaluate it on test, register it and try to promote it."""

    resume: str | None = None
    """Study to go on with, by name or folder."""

    add_trials: int = 0
    """Trials more than it was asked for; with --resume."""

    name: str | None = None
    """Name of the study; by default one with the time in it."""

    weights: str = field(default_factory=lambda: os.environ.get("DRONE_WEIGHTS", "imagenet"))
    """imagenet (downloaded once), none (random) or a file; DRONE_WEIGHTS sets another default."""

    concurrency: int | None = None
    """Trials at once; by default what the processors and GPUs allow. 1 makes a study repeatable."""

    workers_per_trial: int = 1
    """Processes that share each batch of a trial."""

    gpus_per_worker: float | None = None
    """GPUs of each worker, 0.25 for four trials on one; by default one if there are any."""

    features: Path = field(default_factory=cli.features_folder)
    """Local folder for activations of frozen blocks; DRONE_FEATURES sets another default."""

    features_disk: float = 10.0
    """The most that it may take, in GB; 0 keeps nothing."""

    experiment: str = "drone"
    """Experiment in MLflow."""

    model_name: str = "drone-classifier"
    """Name of the registered model."""

    studies: Path = Path("studies")
    """Folder for studies; on the machine that this runs on."""

    storage: str | None = os.environ.get("DRONE_STORAGE")
    """Folder or URI for checkpoints, by default the study's; DRONE_STORAGE sets another default."""

    doctor: bool = True
    """On a cluster, look at every machine first."""

    json: bool = False
    """Print the result as one JSON object, last."""

    def __post_init__(self) -> None:
        if self.resume is not None:
            self._check_resumed()
        if self.resume is None and self.data is None:
            raise ConfigError("Name a data set: --data DATASET (or --resume STUDY). See --help.")
        if self.add_trials and self.resume is None:
            raise ConfigError("--add-trials goes with --resume; else use --num-trials.")
        if self.num_trials < 1 or self.add_trials < 0:
            raise ConfigError("--num-trials must be at least 1, --add-trials 0 or more.")
        if min(self.confirm) < 0:
            raise ConfigError("--confirm takes two numbers that are 0 or more.")

    def _check_resumed(self) -> None:
        if not str(self.resume).strip():
            raise ConfigError("--resume is empty; give it the name or folder of a study.")
        for argument in fields(self):
            made = argument.default_factory
            default = argument.default if made is MISSING else made()
            if argument.name in _OF_A_NEW_STUDY and getattr(self, argument.name) != default:
                raise ConfigError(
                    f"--{argument.name.replace('_', '-')} is of a new study; with --resume a study "
                    f"goes on as it was begun. --add-trials gives it more trials."
                )


def main(job: Tune) -> cli.Result:
    """Runs the job."""
    from drone.adapters import dataset_cache, ray_cluster, study_report, study_run
    from drone.adapters import mlflow_tracking as tracking
    from drone.model import weights
    from drone.training import memory
    from ray_jobs.watch import StudyWatch

    study, asked = _resumed(job) if job.resume else _new(job)
    # Says it now if a trial will want bins and they are not there.
    at_bins = asked.base.model.mixed or "model.resizer" in asked.space
    dataset = dataset_cache.open_at(asked.data, say=cli.console.print, at_bins=at_bins)
    if asked.fingerprint not in ("", dataset.fingerprint):
        raise ConfigError(
            f"The study {asked.name} was begun on the data set {asked.fingerprint[:12]}, and "
            f"{asked.data} is {dataset.fingerprint[:12]} now. Start a new study."
        )
    store = tracking.connect(job.experiment)
    started = weights.load(asked.weights)
    if started.pretrained == "none":
        train.warn("Starting from random weights: the runs are tagged pretrained=none.")
    means = study_run.Means(
        concurrency=job.concurrency,
        workers_per_trial=job.workers_per_trial,
        gpus_per_worker=job.gpus_per_worker,
        features=job.features.expanduser().resolve(),
        features_disk_gb=job.features_disk,
        time_budget_s=None if job.time_budget_min is None else job.time_budget_min * 60,
    )
    tags = {"pretrained": started.pretrained, "fingerprint": dataset.fingerprint}
    with tracking.tracked(asked.name, train.warn, asked.run_id or None, tags) as run:
        if not asked.run_id:
            asked = replace(asked, run_id=run.run_id, fingerprint=dataset.fingerprint)
            study_report.describe(run, asked, dataset)
        study.save_settings(asked)
        cli.console.print(f"Study {study.folder}, run {run.run_id} in {store}", soft_wrap=True)
        for name, domain in asked.space.items():
            cli.console.print(f"  {name:<24} {domain}", highlight=False)
        with ray_cluster.connected(environment=memory.ENVIRONMENT), StudyWatch() as watch:
            if job.doctor:
                doctor.before(store, asked.storage, asked.data, dataset, started, job.features)
            search = study_run.Search(study, run, dataset, started, means, watch)
            search.search()
            repeated = search.confirm(*job.confirm) if min(job.confirm) else []
        found = study_report.conclude(search, run, repeated)
    cli.console.print(f"[bold]{found.sentence}[/]", highlight=False)
    cli.console.print(f"Configuration: {found.file}\nReport: {found.report}", soft_wrap=True)
    result: cli.Result = {"study": asked.name, "run_id": run.run_id, "best": found.as_dict()}
    if job.final:
        result |= _finish(job, asked, found.config, study.folder)
    return result


def _new(job: Tune) -> tuple[Study, Settings]:
    """A new study, not yet on disk."""
    from drone.adapters import storage

    base = get(job.preset)
    if job.config is not None:
        base = override(base, train.read_yaml(job.config), str(job.config))
    asked = {"epochs": job.epochs, "views": job.views, "seed": job.seed}
    flags = {name: value for name, value in asked.items() if value is not None}
    base = override(base, flags, "command line")
    changes = train.read_yaml(job.space) if job.space is not None else {}
    varied = space.parse(job.vary)
    # What --vary says instead must not leave its mark on the space before.
    wanted = {
        name: change for name, change in space.flat_changes(changes).items() if name not in varied
    }
    base, searched = space.resolve(base, wanted, str(job.space or ""))
    base, searched = space.resolve(base, varied, "--vary", searched)
    name = job.name or f"study-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    study = Study((job.studies / name).resolve())
    if (study.folder / STUDY_FILE).exists():
        raise ConfigError(
            f"There is a study {name} in {job.studies} already. Go on with it: --resume {name}; "
            f"or take another --name."
        )
    place = f"{storage.resolve(job.storage)}/{name}" if job.storage else str(study.folder / "runs")
    known = job.weights in ("imagenet", "none")
    return study, Settings(
        name=name,
        base=base,
        space=searched,
        data=storage.absolute(str(job.data)),
        fingerprint="",
        weights=job.weights if known else str(Path(job.weights).resolve()),
        first_trials=_first_trials(job, base, searched),
        num_trials=job.num_trials,
        scheduler=job.scheduler,
        run_id="",
        storage=place,
    )


def _first_trials(job: Tune, base: TrainConfig, searched: space.Space) -> list[dict[str, Any]]:
    """What is tried before Optuna's own suggestions."""
    if job.first is None:
        return [space.settings_of(base, searched)]
    trials: list[dict[str, Any]] = train.read_yaml(job.first, list)
    return [space.check_trial(params, searched, str(job.first)) for params in trials]


def _resumed(job: Tune) -> tuple[Study, Settings]:
    """A study that is there; with more trials if they are asked for."""
    wanted = Path(str(job.resume))
    folder = wanted if (wanted / STUDY_FILE).exists() else job.studies / wanted
    if not (folder / STUDY_FILE).exists():
        known = sorted(file.parent.name for file in job.studies.glob(f"*/{STUDY_FILE}"))
        raise RunError(
            f"There is no study {job.resume} in {job.studies}. There are: "
            f"{', '.join(known) or 'none yet'}."
        )
    study = Study(folder.resolve())
    asked = study.settings
    return study, replace(asked, num_trials=asked.num_trials + job.add_trials)


def _finish(job: Tune, asked: Settings, config: TrainConfig, folder: Path) -> cli.Result:
    """Trains the winner, evaluates it on test, registers and promotes it; each once."""
    from drone.adapters import mlflow_registry as registry
    from drone.adapters import mlflow_tracking as tracking

    # Only what is not the default: a setting that a later version adds changes no name. The study
    # too: another one of the same name may have had other data.
    own = differing(to_dict(config), to_dict(TrainConfig()))
    digest = hashlib.sha256(json.dumps([own, asked.run_id], sort_keys=True).encode()).hexdigest()
    name = f"{asked.name}-final-{digest[:6]}"
    cli.console.print(f"\n[bold]The winner, trained once more ({name})[/]")
    known = tracking.find_named(name)
    if known is None or known.info.status != "FINISHED":
        run_id = train.main(
            train.Train(
                data=asked.data,
                weights=asked.weights,
                name=name,
                resume=known.info.run_id if known else None,
                storage=asked.storage,
                experiment=job.experiment,
                num_workers=job.workers_per_trial if job.workers_per_trial > 1 else None,
                features=job.features,
                features_disk=job.features_disk,
                doctor=False,
                train=config,
            )
        )["run_id"]
    else:
        run_id = known.info.run_id
    result: cli.Result = {"final_run_id": run_id}
    scores = registry.test_result(run_id, asked.fingerprint, own=True)
    if scores is None:
        out = folder / "reports"
        scores = evaluate.main(evaluate.Evaluate(run=run_id, out=out, experiment=job.experiment))
    result |= {"test": {"accuracy": scores["accuracy"], "macro_f1": scores["macro_f1"]}}
    try:
        promoted = promote.main(
            promote.Promote(run=run_id, name=job.model_name, experiment=job.experiment)
        )
    except RunError as error:  # The gate said no, which is an outcome of the study.
        cli.console.print(f"[yellow]{error}[/]")
        return result | {"promoted": False}
    return result | {"promoted": promoted["promoted"], "version": promoted["version"]}


if __name__ == "__main__":
    cli.start(Tune, main, __doc__)
