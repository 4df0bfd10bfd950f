"""Runs a search from its spec to a registered model: trials, confirmation, final fit, gate."""

import contextlib
import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from drone.cluster import connection
from drone.commands import command
from drone.config import override
from drone.data.dataset import DEVELOPMENT_SPLITS, Dataset
from drone.errors import ConfigError, DataError, RunError
from drone.files import locked
from drone.model import weights
from drone.names import check_folder_name
from drone.presets import get_preset
from drone.search import space as search_space
from drone.search.grammar import Changes
from drone.search.scoring import HeldOut, Objective, default_num_folds
from drone.search.study import STUDY_FILE, Study, StudySpec
from drone.storage import dataset_cache
from drone.storage.filesystem import absolute, resolve_writable
from drone.tracking import runs
from drone.training import memory
from drone.training.config import CalibrationConfig
from drone.workflows import cluster_check, moved
from drone.workflows.display import SILENT, Display
from drone.workflows.search_final import (
    AfterSearch,
    FinalModel,
    default_confirmation,
    default_final_on,
    finish,
)
from drone.workflows.search_report import StudyResult, conclude, log_spec
from drone.workflows.search_trials import SearchResources, StudyRunner

_MIN_STEPS = 40
"""Steps that half of the epochs must have: on 100 images, all epochs are a point better and take no
time."""


@dataclass(frozen=True, kw_only=True)
class NewStudy:
    """Request for a new study."""

    data: str
    studies: Path
    """Folder for studies."""

    name: str | None = None
    """Name of the study; by default one with the time in it."""

    preset: str = "finetune"
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that replace the preset's, nested as in TrainConfig."""

    settings_source: str = "settings"
    """Where the settings come from, for error messages; likewise the other sources."""

    space_changes: Changes = field(default_factory=dict)
    """Changes to the default search space."""

    space_source: str = "space"
    varied: Changes = field(default_factory=dict)
    """Further changes, which take precedence over those."""

    first_trials: Sequence[Mapping[str, Any]] | None = None
    """Parameters of the trials before the sampler's own; by default the preset's."""

    first_source: str = "first trials"
    num_trials: int = 30
    scheduler: str = "race"
    folds: int | None = None
    """Number of folds of each trial; by default as many as the data set needs."""

    objective: Objective = "log_loss"
    weights: str = "imagenet"
    storage: str | None = None
    """Folder or URI for checkpoints; by default in the study's folder."""


@dataclass(frozen=True)
class SearchResult:
    """The result of a search."""

    study: str
    run_id: str
    best: StudyResult
    final: FinalModel | None

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        values: dict[str, Any] = {
            "study": self.study,
            "run_id": self.run_id,
            "best": self.best.as_dict(),
        }
        if self.final is None:
            return values
        scores, promoted = self.final.scores, self.final.promotion
        values["final_run_id"] = self.final.run_id
        values["test"] = {"accuracy": scores["accuracy"], "macro_f1": scores["macro_f1"]}
        values["promoted"] = promoted is not None and promoted.promoted
        if promoted is not None:
            values["version"] = promoted.version
        return values


def create_study(request: NewStudy) -> tuple[Study, StudySpec]:
    """Returns a new study and its spec; nothing is written yet.

    Raises:
        ConfigError: A setting, a change or the name is wrong.
    """
    base = override(get_preset(request.preset), request.settings, request.settings_source)
    # Trials hold images out, whatever the settings were made for: they may be another study's best.
    base = replace(base, train_on="train", stop_epoch=0, calibration=CalibrationConfig())
    # What --vary overrides must leave no trace: a fixed setting would drop others from the space.
    changes = {
        name: change for name, change in request.space_changes.items() if name not in request.varied
    }
    base, space = search_space.resolve_space(base, changes, request.space_source)
    base, space = search_space.resolve_space(base, request.varied, "--vary", space)
    name = request.name
    if name is None:
        name = f"study-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    check_folder_name(name, "--name")
    study = Study((request.studies / name).resolve())
    if study.exists:
        raise _exists_already(name, request.studies)
    # The preset first: the search has to beat what one would use without it.
    first_trials = [search_space.base_params(base, space)]
    if request.first_trials is not None:
        first_trials = [
            search_space.check_params(params, space, request.first_source)
            for params in request.first_trials
        ]
    storage = str(study.folder / "runs")
    if request.storage:
        storage = f"{resolve_writable(request.storage)}/{name}"
    # Files by absolute path, since a study may be resumed from another folder.
    by_name = request.weights in ("imagenet", "none")
    return study, StudySpec(
        name=name,
        base=base,
        space=space,
        data=absolute(request.data),
        fingerprint="",
        weights=request.weights if by_name else str(Path(request.weights).resolve()),
        first_trials=first_trials,
        num_trials=request.num_trials,
        scheduler=request.scheduler,
        folds=request.folds or 0,
        objective=request.objective,
        run_id="",
        storage=storage,
        has_default_epochs="epochs" not in request.settings,
    )


def reopen_study(
    name_or_folder: str, studies: Path, add_trials: int = 0, data: str | None = None
) -> tuple[Study, StudySpec]:
    """Returns an existing study and its spec.

    Args:
        name_or_folder: Name or folder of the study.
        studies: Folder for studies.
        add_trials: Number of further trials.
        data: Where its data set is now, if it has moved.

    Raises:
        RunError: There is no study of that name.
    """
    folder = Path(name_or_folder)
    study = Study((folder if (folder / STUDY_FILE).exists() else studies / folder).resolve())
    if not study.exists:
        names = sorted(file.parent.name for file in studies.glob(f"*/{STUDY_FILE}"))
        raise RunError(
            f"There is no study {name_or_folder} in {studies}. There are: "
            f"{', '.join(names) or 'none yet'}."
        )
    spec = study.read_spec()
    if data is not None:
        spec = replace(spec, data=absolute(data))
    return study, replace(spec, num_trials=spec.num_trials + add_trials)


def run_study(
    study: Study,
    spec: StudySpec,
    resources: SearchResources,
    after: AfterSearch,
    *,
    experiment: str = runs.DEFAULT_EXPERIMENT,
    check_cluster: bool = True,
    display: Display = SILENT,
) -> SearchResult:
    """Runs what is left of a study.

    Args:
        study: Study from `create_study` or `reopen_study`.
        spec: Spec of the study.
        resources: What the trials may use.
        after: What happens after the trials.
        experiment: Experiment in MLflow.
        check_cluster: Whether every machine of a cluster is checked first.
        display: Shows the trials.

    Raises:
        LockedError: Another process is running the study.
        Interrupted: Stopped by Ctrl-C or SIGTERM; the study can be resumed.
        DroneError: Anything else that the user can fix.
    """
    with _writing(study, spec):
        return _run_locked(
            study,
            spec,
            resources,
            after,
            experiment=experiment,
            check_cluster=check_cluster,
            display=display,
        )


@contextlib.contextmanager
def _writing(study: Study, spec: StudySpec) -> Iterator[None]:
    """Holds the study's lock; between machines the lease of its run does the same."""
    study.folder.parent.mkdir(parents=True, exist_ok=True)
    lock = study.folder.with_name(f".{study.folder.name}.lock")
    with locked(lock, f"The study {spec.name}"):
        # Another process may have created it since the name was chosen.
        if study.exists and not spec.run_id:
            raise _exists_already(spec.name, study.folder.parent)
        yield


def _exists_already(name: str, studies: Path) -> ConfigError:
    resume = command("tune", resume=studies / name)
    return ConfigError(
        f"There is a study {name} in {studies} already. Choose another --name, or continue it: "
        f"{resume}"
    )


def _run_locked(
    study: Study,
    spec: StudySpec,
    resources: SearchResources,
    after: AfterSearch,
    *,
    experiment: str,
    check_cluster: bool,
    display: Display,
) -> SearchResult:
    store = runs.connect(experiment)
    cache_folder = Path(moved.present_place(str(resources.cache.folder), spec.home))
    resources = replace(resources, cache=replace(resources.cache, folder=cache_folder))
    spec = _as_it_is_now(spec)
    dataset = _open_dataset(spec, display)
    starting = weights.load(spec.weights)
    if starting.pretrained == "none":
        display.warn("Starting from random weights: the runs are tagged pretrained=none.")
    # Before there is a run: it would have failed.
    folds = _num_folds(spec, dataset)
    confirmation = _confirmation(after, folds, dataset)
    tags = {"pretrained": starting.pretrained, "fingerprint": dataset.fingerprint}
    with runs.start_run(spec.name, display.warn, spec.run_id or None, tags) as parent:
        if not spec.run_id:
            spec = replace(
                spec,
                run_id=parent.run_id,
                fingerprint=dataset.fingerprint,
                folds=folds,
                base=replace(spec.base, epochs=_num_epochs(spec, dataset)),
                has_default_epochs=False,
            )
            log_spec(parent, spec, dataset)
        # After the run exists: a kill in between leaves a run without a study, not the reverse.
        study.write_spec(spec)
        display.show(f"Study {study.folder}, run {parent.run_id} in {store}")
        for name, domain in spec.space.items():
            display.show(f"  {name:<24} {domain}")
        # The C library reads these settings when a process starts, before a trial could set them.
        with connection.connected(environment=memory.ENVIRONMENT), display.search() as progress:
            if check_cluster:
                cluster_check.before_job(
                    store, spec.storage, spec.data, dataset, starting, cache_folder, display
                )
            runner = StudyRunner(study, spec, parent, dataset, starting, resources, progress)
            runner.search()
            confirmed = runner.confirm(*confirmation) if min(confirmation) else []
        final_on = after.final_on or default_final_on(spec.folds)
        best = conclude(runner, parent, confirmed, final_on, display)
    display.show("", best.sentence, *best.advice)
    display.show(f"Configuration: {best.config_file}", f"Report: {best.report}")
    final = None
    if after.final:
        final = finish(study, spec, best.config, resources, after, experiment, display)
    return SearchResult(spec.name, spec.run_id, best, final)


def _num_folds(spec: StudySpec, dataset: Dataset) -> int:
    """Returns the number of folds of a study.

    Raises:
        DataError: The data set has too few images for those that the user asked for.
    """
    if spec.folds:
        HeldOut.of(dataset, spec.folds)
        return spec.folds
    num_folds = default_num_folds(*(len(dataset.rows(name)) for name in DEVELOPMENT_SPLITS))
    try:
        HeldOut.of(dataset, num_folds)
    except DataError:  # A handful of images, as a first try may have.
        return 1
    return num_folds


def _confirmation(after: AfterSearch, num_folds: int, dataset: Dataset) -> tuple[int, int]:
    """Returns how many configurations are trained again, and on how many folds.

    Raises:
        DataError: The data set has too few images for those that the user asked for.
    """
    confirmation = after.confirm or default_confirmation(num_folds)
    if min(confirmation):
        try:
            HeldOut.of(dataset, confirmation[1])
        except DataError:
            if after.confirm:
                raise
            return (0, 0)
    return confirmation


def _num_epochs(spec: StudySpec, dataset: Dataset) -> int:
    """Returns the epochs of a trial: those that the user set, else half of the preset's.

    Half of them rank configurations as well (docs/log.md), unless they are a few steps.
    """
    epochs = spec.base.epochs
    if not spec.has_default_epochs:
        return epochs
    num_steps = math.ceil(len(dataset.rows("train")) / spec.base.batch_size)
    return min(epochs, max(math.ceil(epochs / 2), math.ceil(_MIN_STEPS / num_steps)))


def _as_it_is_now(spec: StudySpec) -> StudySpec:
    """Returns a spec with its paths as they are now, since the project may have been moved."""
    return replace(
        spec,
        data=moved.present_input(spec.data, spec.home),
        weights=moved.present_input(spec.weights, spec.home),
        storage=moved.present_place(spec.storage, spec.home),
        options=_with_present_cache(spec),
        home=str(runs.store_folder() or ""),
    )


def _with_present_cache(spec: StudySpec) -> Mapping[str, Any]:
    folder = spec.options.get("activation_cache")
    if folder is None:  # A study that was started from Python.
        return spec.options
    return {**spec.options, "activation_cache": moved.present_place(folder, spec.home)}


def _open_dataset(spec: StudySpec, display: Display) -> Dataset:
    # Fails here if a trial will need bins and they are not packed.
    at_bins = spec.base.model.mixed or "model.resizer" in spec.space
    if not spec.fingerprint:
        return dataset_cache.open_at(spec.data, notify=display.show, at_bins=at_bins)
    dataset = moved.open_recorded(
        spec.data,
        f"the study {spec.name}",
        command("tune", resume=spec.name, data="DATASET"),
        display.show,
        at_bins=at_bins,
    )
    if spec.fingerprint != dataset.fingerprint:
        again = command("tune", data=spec.data, num_trials=spec.num_trials)
        raise ConfigError(
            f"Cannot resume the study {spec.name}: it was started on the data set "
            f"{spec.fingerprint[:12]}, and {spec.data} is {dataset.fingerprint[:12]} now. Give "
            f"that one with --data, or start a new study: {again}"
        )
    return dataset
