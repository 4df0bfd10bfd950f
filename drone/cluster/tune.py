"""Runs the trials of a study on Ray Tune, concurrently, in processes that are reused."""

import logging
import os
from dataclasses import dataclass

# Before Ray Tune is imported: the study keeps its own state and its own log.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
# A pruned trial of several workers keeps their processors until its process ends; by default it is
# given 10 min.
os.environ.setdefault("TUNE_FORCE_TRIAL_CLEANUP_S", "5")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

from ray import tune

from drone.cluster import connection
from drone.cluster.searcher import StudyScheduler, StudySearcher
from drone.cluster.train_job import Workers
from drone.cluster.trial import TrialSpec, run_trial
from drone.errors import ConfigError, Interrupted
from drone.storage.filesystem import for_ray

_MAX_PROCESS_LOSSES = 2


@dataclass(frozen=True, kw_only=True)
class TrialSlots:
    """Resources of the trials."""

    concurrency: int
    """Maximum number of trials at the same time."""

    workers: Workers
    """Workers of each trial."""


def choose_slots(
    concurrency: int | None,
    workers_per_trial: int,
    gpus_per_worker: float | None,
    num_trials: int,
) -> TrialSlots:
    """Allocates as many concurrent trials as fit, each with CPUs and GPUs of its own.

    By default one per GPU, or one per CPU, but at most a quarter of the trials: a search learns
    from those that have ended.

    Args:
        concurrency: Number that the user set; None for the default.
        workers_per_trial: Processes that share each batch of a trial.
        gpus_per_worker: None uses one GPU each, if there are enough.
        num_trials: Number of trials of the study.

    Raises:
        ConfigError: Not even one trial fits, or not as many as the user set.
    """
    totals, cpus_by_node = connection.available_resources()
    cpus, gpus = int(totals.get("CPU", 0)), float(totals.get("GPU", 0))
    if workers_per_trial < 1:
        raise ConfigError(f"--workers-per-trial is {workers_per_trial}; it must be at least 1.")
    if gpus_per_worker is None:
        gpus_per_worker = 1.0 if gpus >= workers_per_trial else 0.0
    max_concurrency = cpus // workers_per_trial
    if gpus_per_worker:
        by_gpus = connection.fitting_workers(gpus, gpus_per_worker) // workers_per_trial
        max_concurrency = min(max_concurrency, by_gpus)
    if max_concurrency < 1:
        advice = "Lower one of the two; --gpus-per-worker 0 trains on CPUs."
        if workers_per_trial > cpus:
            advice = f"Set --workers-per-trial to at most {cpus}."
        raise ConfigError(
            f"A trial of --workers-per-trial {workers_per_trial} with {gpus_per_worker:g} GPUs "
            f"each does not fit: Ray has {cpus} CPUs and {gpus:g} GPUs. {advice}"
        )
    if concurrency is None:
        concurrency = min(max_concurrency, max(1, num_trials // 4))
    if not 1 <= concurrency <= max_concurrency:
        raise ConfigError(
            f"--concurrency is {concurrency}; Ray has room for 1 to {max_concurrency} trials."
        )
    cpus_per_worker = max(1, cpus // (concurrency * workers_per_trial))
    workers = Workers(
        num_workers=workers_per_trial,
        min_workers=workers_per_trial,
        # No worker may need more than a machine has.
        cpus_per_worker=min(cpus_per_worker, int(min(cpus_by_node))),
        gpus_per_worker=gpus_per_worker,
        may_wait=connection.on_cluster(),
    )
    return TrialSlots(concurrency=concurrency, workers=workers)


def run_trials(
    searcher: StudySearcher,
    spec: TrialSpec,
    slots: TrialSlots,
    attempt: str,
) -> None:
    """Runs all trials of a searcher; blocks.

    Args:
        searcher: Supplies the trials, records their results, and ends some of them early.
        spec: What the trials have in common.
        slots: What the trials compute on.
        attempt: Name of this attempt, different from earlier ones'.

    Raises:
        Interrupted: Stopped by Ctrl-C or SIGTERM.
    """
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    workers = slots.workers
    in_process = workers.num_workers == 1
    # A trial that runs Ray Train only waits for it: any share of a CPU would be missing for its
    # workers, so it reserves a little memory instead.
    waiting = tune.PlacementGroupFactory([{"memory": 1_000_000}])
    resources = {"CPU": workers.cpus_per_worker, "GPU": workers.gpus_per_worker}
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, spec=spec), resources if in_process else waiting
    )
    storage_path, storage_filesystem = for_ray(spec.storage)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=StudyScheduler(searcher),
            # No limit: the searcher says when there are no more trials.
            num_samples=-1,
            # A pruned trial leaves Ray Train running in a thread, which only the end of its process
            # stops.
            reuse_actors=in_process,
            trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=attempt,
            storage_path=storage_path,
            storage_filesystem=storage_filesystem,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=_MAX_PROCESS_LOSSES),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
        ),
    )
    interrupted = "The search was stopped; its trials are kept."
    try:
        tuner.fit()
    except KeyboardInterrupt as error:
        raise Interrupted(interrupted) from error
    # On Ctrl-C Ray Tune stops its trials and returns as if it had finished.
    if not searcher.is_complete:
        raise Interrupted(interrupted)
