"""Starting weights from an earlier run, whose classes may have been others."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from drone.data.dataset import Dataset
from drone.errors import RunError
from drone.labels import ClassSet
from drone.model import mobilenet, weights
from drone.model.weights import Weights
from drone.names import listed
from drone.storage import checkpoints
from drone.tracking import artifacts, runs
from drone.tracking.runs import Run
from drone.training import checkpoint
from drone.workflows.display import Display
from drone.workflows.run_spec import RunSpec, read_spec

FROM_RUN_TAG = "from_run"
"""Tag of a run: the id of the run whose weights it started from."""


def starting_weights(spec: RunSpec, dataset: Dataset, display: Display) -> Weights:
    """Returns the weights of the best epoch of the run that a run starts from.

    The head keeps the rows of classes that both have; those of new classes are random.

    Args:
        spec: Spec of the run that starts.
        dataset: Its data set.
        display: Shows which classes stay.

    Raises:
        RunError: There is no such run, its weights are gone, its head is of another kind, or it was
            trained on images that are held out now.
    """
    run = runs.find_run(spec.from_run)
    _check_held_out(run, dataset)
    before, state = _best_weights(run)
    _show_classes(run, before, dataset.classes, display)
    model = mobilenet.build(spec.config.model, len(dataset.classes), spec.config.seed, None)
    _check_head(run, state, model)
    merged = _merge(model.state_dict(), state, before, dataset.classes)
    return weights.of_model(f"run {run.info.run_name}", merged)


def _best_weights(run: Run) -> tuple[Sequence[str], Mapping[str, Tensor]]:
    """Returns the classes of a run, in their order, and the weights of its best epoch."""
    storage = read_spec(run.info.run_id).storage
    stored = checkpoints.newest(storage)
    if stored is None:
        raise RunError(
            f"Cannot start from run {run.info.run_name}: there is no checkpoint of it in "
            f"{storage}. Restore it, or start from --weights."
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = checkpoints.fetch(stored.location, Path(temporary) / "checkpoint")
        # Not from MLflow, which cuts long tags: 200 classes may have 40,000 bytes of names.
        _, identity = checkpoint.read_position(folder)
        return identity.classes, checkpoint.load_best(folder)


def _show_classes(run: Run, before: Sequence[str], now: ClassSet, display: Display) -> None:
    new = [name for name in now if name not in before]
    removed = [name for name in before if name not in now]
    parts = [f"{len(now) - len(new)} of {len(now)} classes keep their weights"]
    parts += [f"new: {listed(new)}"] if new else []
    parts += [f"removed: {listed(removed)}"] if removed else []
    display.show(f"Starting from run {run.info.run_name} ({'; '.join(parts)})")


def _last_layer(state: Mapping[str, Tensor]) -> str:
    """Returns the name of the head's last layer, which has a row for each class."""
    return [name for name in state if name.startswith("head.")][-1].rpartition(".")[0]


def _check_head(run: Run, state: Mapping[str, Tensor], model: mobilenet.Classifier) -> None:
    """Fails if the heads differ in more than the number of classes."""

    def layers(of: Mapping[str, Tensor]) -> list[tuple[str, torch.Size]]:
        last = _last_layer(of)
        heads = [(name, value) for name, value in of.items() if name.startswith("head.")]
        # Of the last layer, the rows do not count.
        return [(name, value.shape[name.startswith(last) :]) for name, value in heads]

    if layers(state) == layers(model.state_dict()):
        return
    theirs = read_spec(run.info.run_id).config.model
    raise RunError(
        f"Cannot start from run {run.info.run_name}: it has another head. Add --model.head "
        f"{theirs.head} --model.head-width {theirs.head_width}, or start from --weights."
    )


def _merge(
    fresh: Mapping[str, Tensor], state: Mapping[str, Tensor], before: Sequence[str], now: ClassSet
) -> dict[str, Tensor]:
    """Returns the earlier weights, with the rows of the last layer in the order of the classes."""
    last = _last_layer(fresh)
    rows = [(index, before.index(name)) for index, name in enumerate(now) if name in before]
    merged = {}
    for name, value in fresh.items():
        earlier = state.get(name)
        if name.startswith(f"{last}.") and earlier is not None:
            merged[name] = value.clone()
            for index, old_index in rows:
                merged[name][index] = earlier[old_index]
        else:
            same = earlier is not None and earlier.shape == value.shape
            merged[name] = earlier if earlier is not None and same else value
    return merged


def _ancestors(run: Run) -> Iterator[Run]:
    """Yields a run, the run that it started from, and so on."""
    yield run
    while earlier := run.data.tags.get(FROM_RUN_TAG):
        run = runs.find_run(earlier)
        yield run


def _check_held_out(run: Run, dataset: Dataset) -> None:
    """Fails if one of the runs has seen images that would measure the new one."""
    held_out = pd.concat([dataset.rows("validation"), dataset.rows("test")])
    for ancestor in _ancestors(run):
        images = artifacts.images_of(ancestor.info.run_id)
        trained = images.loc[images["split"] == "train", "content"]
        seen = int(held_out["content"].isin(trained).sum())
        if seen:
            raise RunError(
                f"Cannot start from run {run.info.run_name}: {ancestor.info.run_name} was trained "
                f"on {seen} of the {len(held_out)} images that {dataset.folder} holds out, so its "
                f"scores would be too good. Prepare into the data set that it was trained on "
                f"(--out), whose images stay in their splits."
            )
