"""Takes labelled images out of the store of served ones, which deletes them some day."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from drone.data.prepare import ledger
from drone.data.prepare.class_names import folder_name
from drone.data.prepare.ledger import Decision
from drone.errors import DataError
from drone.labels import NONE
from drone.names import listed
from drone.storage.kept_images import KeptImages, StoredImage
from drone.workflows import served_folder
from drone.workflows.requests import PrepareRequest
from drone.workflows.served_folder import Outcome


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

    absent: frozenset[str] = frozenset()
    """md5 of images that were decided to show none of the classes, and are not in the folders."""


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
    folder = _folder_beside(out)
    with contextlib.ExitStack() as stack:
        if request.dry_run and request.decisions:
            folder = _linked(folder, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        yield _take_labelled(request, classes, folder, notify)


def _linked(folder: Path, temporary: Path) -> Path:
    """Returns a folder of links to the files of another, where a dry run may write."""
    linked = temporary / folder.name
    if folder.is_dir():
        shutil.copytree(folder, linked, copy_function=os.symlink)
    return linked


def without_served(names: Sequence[str], out: Path) -> list[str]:
    """Returns the folders of a request without those that `opened` yields for the data set.

    Commands that prepare it again name these as well, and a dry run has others in their place.
    """
    folder = _folder_beside(out)
    return [name for name in names if Path(name).resolve() not in (folder, folder / NONE)]


def _folder_beside(out: Path) -> Path:
    return out.resolve().with_name(f"{out.resolve().name}-served")


def _take_labelled(
    request: PrepareRequest, classes: Sequence[str], folder: Path, notify: Callable[[str], None]
) -> ServedImages:
    """Copies the images that were given a class to a folder, with where they came from.

    Later decisions on images that it holds are in the ledger, where no image can be relabelled to
    no class; such an image moves to the negatives.
    """
    decisions: dict[str, Decision] = {}
    if request.decisions:
        decisions = ledger.by_hand(ledger.read_by_hand(request.decisions, classes))
    store = KeptImages(request.served) if request.served else None
    in_store = {image.sha256: image for image in store.images()} if store else {}
    # Images of earlier runs as well: the store has deleted some of them since.
    images = first_by_md5([*{**served_folder.recorded(folder), **in_store}.values()], notify)
    labels = _labels(images, decisions, classes, served_folder.files_by_sha256(folder))
    dropped = {md5 for md5, one in decisions.items() if one.action == "drop" and md5 in images}
    try:
        outcome = served_folder.take([(images[md5], labels[md5]) for md5 in labels], store, folder)
    except OSError as error:
        raise DataError(
            f"Labelled images cannot be copied to {folder}: {error}. What was copied stays; run "
            f"the same command again."
        ) from error
    if store:
        undecided = {image.md5 for image in in_store.values()} - decisions.keys()
        notify(
            f"{request.served}: {outcome.num_new} labelled images are new in {folder}, "
            f"{len(dropped)} were dropped, and {len(undecided)} without a decision are left out."
        )
    _notify_of_left_out(outcome, notify)
    return _served_images(images, decisions, classes, folder, dropped)


def first_by_md5(
    images: Sequence[StoredImage], notify: Callable[[str], None]
) -> dict[str, StoredImage]:
    """Returns images by md5; of two with the same one the first, whose label it has been."""
    first: dict[str, StoredImage] = {}
    for image in images:
        other = first.setdefault(image.md5, image)
        if other.sha256 != image.sha256:
            notify(
                f"{image.path} is left out: its md5, {image.md5}, is also that of {other.path}, "
                f"and decisions identify images by it."
            )
    return first


def _notify_of_left_out(outcome: Outcome, notify: Callable[[str], None]) -> None:
    if outcome.gone:
        notify(
            f"Labelled images left out because the store no longer has them "
            f"({len(outcome.gone)}): {listed(outcome.gone)}."
        )
    if outcome.damaged:
        notify(
            f"Labelled images left out because their files in the store are damaged "
            f"({len(outcome.damaged)}): {listed(outcome.damaged)}."
        )


def _served_images(
    images: Mapping[str, StoredImage],
    decisions: Mapping[str, Decision],
    classes: Sequence[str],
    folder: Path,
    dropped: Collection[str],
) -> ServedImages:
    """Returns the folder as it is now, and the decisions as the ledger takes them."""
    present = served_folder.files_by_sha256(folder)
    absent = {
        md5
        for md5, decision in decisions.items()
        if decision.class_name == NONE and (md5 not in images or images[md5].sha256 not in present)
    }
    has_classes = any((folder / folder_name(name)).is_dir() for name in classes)
    has_negatives = (folder / NONE).is_dir()
    return ServedImages(
        raw=(str(folder),) if has_classes else (),
        negatives=(str(folder / NONE),) if has_negatives else (),
        decisions=[_for_ledger(one) for md5, one in decisions.items() if md5 not in absent],
        dropped=frozenset(dropped),
        absent=frozenset(absent),
    )


def _labels(
    images: Mapping[str, StoredImage],
    decisions: Mapping[str, Decision],
    classes: Sequence[str],
    present: Collection[str],
) -> dict[str, str]:
    """Returns class or `labels.NONE` by md5 of the images that are to be taken or moved.

    To keep an image that is new is to agree with the answer that it got when it was served; to keep
    one that is there changes nothing.

    Args:
        images: Images by md5.
        decisions: The last decision on each.
        classes: Classes of the data set.
        present: SHA-256 of the images in the folder.

    Raises:
        DataError: That answer is no class of the data set.
    """
    labels = {}
    for md5, decision in decisions.items():
        image = images.get(md5)
        keeps_present = decision.action == "keep" and image and image.sha256 in present
        if image is None or decision.action == "drop" or keeps_present:
            continue
        labels[md5] = decision.class_name or image.label
        if labels[md5] not in (*classes, NONE):
            raise DataError(
                f"The decision to keep {image.path} agrees with the answer that it got, "
                f"{image.label!r}, which is not a class of the data set. Relabel the image instead."
            )
    return labels


def _for_ledger(decision: Decision) -> Decision:
    """Returns a decision as the ledger takes it, where no image is relabelled to no class."""
    if decision.class_name != NONE:
        return decision
    return replace(decision, action="keep", class_name="")
