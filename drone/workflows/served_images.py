"""Takes labelled images out of the store of served ones, which deletes them some day."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from drone.data.prepare import ledger
from drone.data.prepare.ledger import Decision
from drone.errors import DataError
from drone.files import write_whole
from drone.labels import NONE
from drone.names import file_name
from drone.storage.kept_images import KeptImages, StoredImage
from drone.workflows.requests import PrepareRequest

KIND = "served"
"""Kind of the negatives among served images."""

_PROVENANCE_FILE = "provenance.jsonl"
"""Beside the class folders; the audit counts images by the `source` in its lines."""


@dataclass(frozen=True)
class ServedImages:
    """The labelled images of a store as raw folders, and the decisions that go into the ledger."""

    raw: tuple[str, ...] = ()
    """Folder with their class folders; none if it has no image of a class."""

    negatives: tuple[str, ...] = ()
    """Folder of those that show none of the classes; none if there are none."""

    decisions: Sequence[Decision] = ()
    dropped: frozenset[str] = frozenset()
    """md5 of images that were dropped, and so are in no folder."""


@contextlib.contextmanager
def opened(
    request: PrepareRequest,
    classes: Sequence[str],
    out: Path,
    notify: Callable[[str], None],
) -> Iterator[ServedImages]:
    """Yields the labelled served images of a data set, after taking new ones from the store.

    Once a data set has some, they stay part of it, also where --served is not named again.

    Args:
        request: Raw folders, store and decisions.
        classes: Classes of the data set.
        out: Folder of the data set, which the caller has locked unless it is a dry run.
        notify: Called with what was taken and what was left out.

    Raises:
        DataError: The store or the decisions cannot be read, or the folder cannot be written.
    """
    folder = out.resolve().with_name(f"{out.resolve().name}-served")
    with contextlib.ExitStack() as stack:
        if request.dry_run and request.served:
            folder = _linked(folder, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        yield _without_named(_take_labelled(request, classes, folder, notify), request)


def _linked(folder: Path, temporary: Path) -> Path:
    """Returns a folder of links to the files of another, where a dry run may write."""
    linked = temporary / folder.name
    if folder.is_dir():
        shutil.copytree(folder, linked, copy_function=os.symlink)
    return linked


def _without_named(served: ServedImages, request: PrepareRequest) -> ServedImages:
    """Returns the images without folders that the request names itself."""
    named = {str(Path(name).resolve()) for name in (*request.raw, *request.negatives)}
    raw, negatives = (
        tuple(name for name in names if name not in named)
        for names in (served.raw, served.negatives)
    )
    return replace(served, raw=raw, negatives=negatives)


def _take_labelled(
    request: PrepareRequest, classes: Sequence[str], folder: Path, notify: Callable[[str], None]
) -> ServedImages:
    """Copies the images that were given a class to a folder, with where they came from.

    Their paths have class, day and model: CLASS/2026-11-28_drone-classifier_3_SHA256.jpg. Images
    that it holds already stay where they are, since later decisions are in the ledger; only one
    that turns out to be of no class moves to the negatives.
    """
    store = KeptImages(request.served) if request.served else None
    images = {image.md5: image for image in store.images()} if store else {}
    decisions: list[Decision] = []
    if request.decisions:
        decisions = ledger.read_by_hand(request.decisions, classes, images.keys())
    dropped: set[str] = set()
    if store:
        labels = _labels(images, decisions, classes)
        dropped = set(_decided(images, decisions)) - set(labels)
        try:
            num_new = _take(store, images, labels, folder)
        except OSError as error:
            raise DataError(
                f"Labelled images cannot be copied from {request.served} to {folder}: {error}. "
                f"What was copied stays there; run the same command again."
            ) from error
        notify(
            f"{request.served}: {num_new} labelled images are new in {folder}, {len(dropped)} were "
            f"dropped, and {len(images) - len(labels) - len(dropped)} without a decision are left "
            f"out."
        )
    raw = (str(folder),) if any((folder / _folder(name)).is_dir() for name in classes) else ()
    negatives = (str(folder / NONE),) if (folder / NONE).is_dir() else ()
    for_ledger = [_for_ledger(decision) for decision in decisions]
    return ServedImages(raw, negatives, for_ledger, frozenset(dropped))


def _decided(
    images: Mapping[str, StoredImage], decisions: Sequence[Decision]
) -> dict[str, Decision]:
    """Returns the last decision on each image of the store, by md5."""
    return {md5: one for md5, one in ledger.by_hand(decisions).items() if md5 in images}


def _labels(
    images: Mapping[str, StoredImage], decisions: Sequence[Decision], classes: Sequence[str]
) -> dict[str, str]:
    """Returns class or `labels.NONE` by md5 of the images that were given one.

    To keep an image is to agree with the answer that it got when it was served.

    Raises:
        DataError: That answer is no class of the data set.
    """
    labels = {}
    for md5, decision in _decided(images, decisions).items():
        if decision.action == "drop":
            continue
        labels[md5] = decision.class_name or images[md5].label
        if labels[md5] not in (*classes, NONE):
            raise DataError(
                f"The decision to keep {images[md5].path} names no class, and its answer "
                f"{labels[md5]!r} is none of {', '.join(classes)}. Relabel it instead."
            )
    return labels


def _for_ledger(decision: Decision) -> Decision:
    """Returns a decision as the ledger takes it, where no image is relabelled to no class."""
    if decision.class_name != NONE:
        return decision
    return replace(decision, action="keep", class_name="")


def _take(
    store: KeptImages, images: Mapping[str, StoredImage], labels: Mapping[str, str], folder: Path
) -> int:
    """Copies what is not there yet; returns the number of images that are new."""
    present = {file.stem.rpartition("_")[2]: file for file in folder.rglob("*") if file.is_file()}
    lines = []
    for md5, label in labels.items():
        image, before = images[md5], present.get(images[md5].sha256)
        target = folder / _path(image, label)
        if before is None:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, store.read(image.path))
            lines.append(_provenance(image, target.relative_to(folder)))
        elif label == NONE and before.relative_to(folder).parts[0] != NONE:
            target.parent.mkdir(parents=True, exist_ok=True)
            before.replace(target)
    if lines:
        file = folder / _PROVENANCE_FILE
        earlier = file.read_bytes() if file.exists() else b""
        write_whole(file, earlier + b"".join(lines))
    return len(lines)


def _path(image: StoredImage, label: str) -> Path:
    origin = file_name(f"{image.day} {image.model}")
    name = f"{origin}_{image.path.rpartition('/')[2]}"
    return Path(NONE, KIND, name) if label == NONE else Path(_folder(label), name)


def _folder(class_name: str) -> str:
    """Returns the name of a class as that of a folder in the raw folder, which stands for it."""
    return class_name.replace("/", " ").lstrip(". ")


def _provenance(image: StoredImage, path: Path) -> bytes:
    record = {
        "source": f"served by {image.model}",
        "licence": "",
        **asdict(image),
        "served_as": image.label,
        "path": path.as_posix(),
    }
    return json.dumps(record, ensure_ascii=False, sort_keys=True).encode() + b"\n"
