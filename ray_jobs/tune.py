"""Searches for the best way to fine-tune on a data set, and hands the model to the registry.

    python ray_jobs/tune.py --data data/drones --num-trials 30                       (a laptop)
    python ray_jobs/tune.py --data data/drones --gpus-per-worker 0.25                (a GPU box)
    python ray_jobs/tune.py --data data/drones --vary augment.strength=1 optim.lr_head=1e-4..1e-2
    python ray_jobs/tune.py --resume STUDY --add-trials 20
    RAY_ADDRESS=auto python ray_jobs/tune.py --data /shared/drones --storage /shared/studies
                                                                      (on the head of a cluster)

Optuna suggests each trial from those before. A trial is scored on images that it was not trained
on: fold by fold, all images of training and validation. It ends early once it is surely worse than
the best one on the same images. The winner is trained once more on all of them, evaluated on test
(the only time that test is read), registered and, if it passes the gate, promoted. Everything is
under one parent run in MLflow and in the study's folder.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
ROOTS = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(root for root in ROOTS if (root / "drone").is_dir())))

from ray_jobs import bug_report

bug_report.install(__name__)


from drone.errors import ConfigError
from drone.settings_file import read_yaml
from ray_jobs import cli, console, results

if TYPE_CHECKING:
    from drone.workflows.search import NewStudy

_FIXED_BY_STUDY = {
    *("num_trials", "preset", "config", "epochs", "views", "seed", "vary", "space", "first"),
    *("scheduler", "folds", "objective", "name", "weights", "storage"),
}
"""Arguments that decide a study, and cannot be changed after its start."""

_MAX_FOLDS = 20

_KEPT_BY_STUDY = (
    *(
        "until_sure",
        "time_budget_min",
        "confirm",
        "final",
        "final_on",
        "concurrency",
        "workers_per_trial",
    ),
    *("gpus_per_worker", "activation_cache", "activation_cache_gb", "experiment", "model_name"),
    "doctor",
)
"""Arguments that a resumed study takes from before, unless they are set again."""


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Arguments of the job."""

    data: str | None = None
    """Data set written by prepare.py: a folder or a URI such as s3://bucket/drones. With --resume,
    the new place of the study's data set, if it has moved."""

    num_trials: int = 30
    """Maximum number of trials of the study."""

    until_sure: bool = True
    """End the search when more trials are expected to gain less than the noise of a comparison."""

    preset: str = "finetune"
    """Preset that provides the settings that are not searched."""

    config: Path | None = None
    """YAML file of settings that replace the preset's, as for train.py."""

    epochs: int | None = None
    """Epochs per trial and fold, and of the final model (default: half of the preset's, or all if
    the images are few)."""

    views: int | None = None
    """Number of different augmented views per image; fewer than epochs save time and disk."""

    seed: int | None = None
    """Seed of the study and its trials (default: the preset's)."""

    vary: tuple[str, ...] = ()
    """Changes to the search space: NAME=VALUE fixes a setting, NAME=A,B,C and NAME=LOW..HIGH
    restrict it."""

    space: Path | None = None
    """YAML file of such changes: a value, a list, or low, high and log by name."""

    first: Path | None = None
    """YAML list of parameters to try first, each by name (default: the preset's)."""

    folds: int | None = None
    """Number of folds that each trial is scored on; 1 is the plain validation split (default: as
    many as it takes to know an accuracy to about 1 point, at most 5)."""

    objective: Literal["log_loss", "macro_f1"] = "log_loss"
    """What trials are compared by, on held-out images: log-loss after temperature scaling, or macro
    F1."""

    scheduler: Literal["race", "asha", "median", "none"] = "race"
    """What ends trials early: race gives the next fold to the better third of the trials, and ends
    those that a paired test finds worse than the best; asha halves them by epochs; median ends
    those below the median of the others."""

    time_budget_min: float | None = None
    """Minutes after which no trial starts; running trials end as usual, and the winner is confirmed
    and trained after them."""

    confirm: tuple[int, int] | None = None
    """K and S: train the best K configurations, and the preset, again on S folds with another seed;
    0 0 takes the best trial's (default: 3 3 with --folds 1, else 0 0)."""

    final: bool = True
    """Train the winner once more, evaluate it on test, register it and try to promote it."""

    final_on: Literal["train", "train+validation"] | None = None
    """Images that the winner is trained on once more (default: train with --folds 1, else both)."""

    resume: str | None = None
    """Study to resume, by name or folder, with the flags that it was started with; only those that
    do not decide the result of a trial can be set again."""

    add_trials: int = 0
    """Number of further trials; with --resume."""

    name: str | None = None
    """Name of the study (default: one with the time in it)."""

    weights: str = field(default_factory=cli.default_weights)
    """Starting weights: imagenet (downloaded once), none (random) or a file; DRONE_WEIGHTS sets
    another default."""

    concurrency: int | None = None
    """Number of concurrent trials; 1 makes a study repeatable (default: what CPUs and GPUs
    allow)."""

    workers_per_trial: int = 1
    """Number of processes that share each batch of a trial."""

    gpus_per_worker: float | None = None
    """GPUs per worker, 0.25 for four trials on one (default: one, if there are any)."""

    activation_cache: Path = field(default_factory=cli.default_activation_cache)
    """Local folder of the activation cache; DRONE_ACTIVATION_CACHE sets another default."""

    activation_cache_gb: float = 10.0
    """Maximum size of the activation cache in GB; 0 disables it."""

    experiment: str = "drone"
    """Experiment in MLflow."""

    model_name: str = "drone-classifier"
    """Name of the registered model."""

    studies: Path = Path("studies")
    """Folder for studies, on the machine that this job runs on."""

    storage: str | None = os.environ.get("DRONE_STORAGE")
    """Folder or URI for checkpoints (default: the study's folder); DRONE_STORAGE sets another
    default."""

    doctor: bool = True
    """Check every machine of a cluster first."""

    json: bool = False
    """Print the result as one JSON object, last."""

    def __post_init__(self) -> None:
        if self.resume is not None and not self.resume.strip():
            raise ConfigError("--resume is empty; set it to the name or folder of a study.")
        if self.resume is None and self.data is None:
            raise ConfigError("Name a data set: --data DATASET (or --resume STUDY). See --help.")
        if self.add_trials and self.resume is None:
            raise ConfigError("--add-trials needs --resume; for a new study set --num-trials.")
        if self.num_trials < 1 or self.add_trials < 0:
            raise ConfigError("--num-trials must be at least 1, --add-trials 0 or more.")
        if self.confirm is not None and min(self.confirm) < 0:
            raise ConfigError("--confirm takes two numbers that are 0 or more.")
        if self.folds is not None and not 1 <= self.folds <= _MAX_FOLDS:
            raise ConfigError(f"--folds is {self.folds}; it must be 1 to {_MAX_FOLDS}.")


def parse(arguments: Sequence[str]) -> Tune:
    """Parses the command line; the defaults of a resumed study are what it was started with."""
    resumed = cli.value_of("--resume", arguments)
    if not resumed or {"--help", "-h"} & set(arguments):
        return cli.from_flags(Tune, arguments, __doc__)
    for argument in arguments:
        name = argument.split("=")[0].removeprefix("--").replace("-", "_")
        if argument.startswith("--") and name in _FIXED_BY_STUDY:
            raise ConfigError(
                f"--{name.replace('_', '-')} is fixed when a study starts and cannot be changed "
                f"with --resume. --add-trials gives it more trials."
            )
    from drone.workflows import search

    studies = Path(cli.value_of("--studies", arguments) or Tune.studies)
    _, spec = search.reopen_study(resumed, studies)
    default = Tune(resume=resumed, studies=studies, **_from_plain(spec.options))
    return cli.from_flags(Tune, arguments, __doc__, default=default)


def _options(job: Tune) -> dict[str, Any]:
    """Returns the arguments that a study keeps, as JSON has them."""
    values = {name: getattr(job, name) for name in _KEPT_BY_STUDY}
    return values | {
        "confirm": None if job.confirm is None else list(job.confirm),
        "activation_cache": str(job.activation_cache.resolve()),
    }


def _from_plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `_options`; none for a study that was started from Python."""
    if not options:
        return {}
    return {
        **options,
        "confirm": None if options["confirm"] is None else tuple(options["confirm"]),
        "activation_cache": Path(options["activation_cache"]),
    }


def _show_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name, value in before.items():
        if now[name] != value:
            console.show(
                f"--{name.replace('_', '-')} is {now[name]} from now on; the study had {value}."
            )


def main(job: Tune) -> cli.Result:
    """Runs the job."""
    # Imported late: it takes seconds, for which --help and wrong usage should not wait.
    from drone.storage.filesystem import absolute
    from drone.training.activation_cache.store import CacheSpec
    from drone.workflows import search
    from drone.workflows.search_final import AfterSearch
    from drone.workflows.search_trials import SearchResources

    if job.resume is not None:
        study, spec = search.reopen_study(job.resume, job.studies, job.add_trials, job.data)
        _show_changes(spec.options, _options(job))
    else:
        study, spec = search.create_study(_new_study(job))
    spec = replace(spec, options=_options(job))
    folder = Path(absolute(str(job.activation_cache)))
    resources = SearchResources(
        concurrency=job.concurrency,
        workers_per_trial=job.workers_per_trial,
        gpus_per_worker=job.gpus_per_worker,
        cache=CacheSpec(folder=folder, disk_gb=job.activation_cache_gb),
        time_budget_s=None if job.time_budget_min is None else job.time_budget_min * 60,
        until_sure=job.until_sure,
    )
    result = search.run_study(
        study,
        spec,
        resources,
        AfterSearch(
            confirm=job.confirm,
            final=job.final,
            final_on=job.final_on,
            model_name=job.model_name,
        ),
        experiment=job.experiment,
        check_cluster=job.doctor,
        display=console.ConsoleDisplay(),
    )
    if result.final and result.final.evaluation:
        results.show_evaluation(result.final.evaluation)
    if result.final and result.final.promotion:
        console.show(result.final.promotion.message)
    return result.as_dict()


def _new_study(job: Tune) -> "NewStudy":
    from drone.search.grammar import flatten_changes, parse_changes
    from drone.search.space import DEFAULT
    from drone.workflows import search

    settings = read_yaml(job.config) if job.config else {}
    space = read_yaml(job.space) if job.space else {}
    first_trials = read_yaml(job.first, list) if job.first else None
    flags = {"epochs": job.epochs, "views": job.views, "seed": job.seed}
    # The flags come last, as they win over the file.
    settings |= {name: value for name, value in flags.items() if value is not None}
    return search.NewStudy(
        data=str(job.data),
        studies=job.studies,
        name=job.name,
        preset=job.preset,
        settings=settings,
        settings_source=str(job.config or "command line"),
        space_changes=flatten_changes(space),
        space_source=str(job.space or "--space"),
        varied=parse_changes(job.vary, DEFAULT),
        first_trials=first_trials,
        first_source=str(job.first or "--first"),
        num_trials=job.num_trials,
        scheduler=job.scheduler,
        folds=job.folds,
        objective=job.objective,
        weights=job.weights,
        storage=job.storage,
    )


if __name__ == "__main__":
    cli.start(parse, main)
