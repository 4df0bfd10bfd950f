"""The folder of labelled served images beside a data set, OUT-served, which nothing deletes."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from drone.collect.provenance import parse_lines
from drone.data.prepare.class_names import folder_name
from drone.files import write_whole
from drone.labels import NONE
from drone.names import file_name
from drone.storage.kept_images import KeptImages, StoredImage

KIND = "served"
"""Kind of the negatives among served images."""

_PROVENANCE_FILE = "provenance.jsonl"
"""Beside the class folders; the audit counts images by the `source` in its lines."""

_PARTIAL_FILE = ".new"
"""The image that is being written. In a class folder it would count as a raw file after a kill."""


@dataclass
class Outcome:
    """What became of images that were to be taken."""

    num_new: int = 0
    gone: list[str] = field(default_factory=list)
    """Paths of images that the store no longer has."""

    damaged: list[str] = field(default_factory=list)
    """Paths of images whose content in the store is not the one that was served."""


@dataclass(frozen=True)
class _Step:
    """An image on its way to its place in the folder."""

    image: StoredImage
    target: Path
    """Path in the folder."""

    before: Path | None
    """Where the folder has it; None if it has to be read from the store."""


def recorded(folder: Path) -> dict[str, StoredImage]:
    """Returns the images that the provenance file has lines of, by SHA-256.

    Their paths are those in the folder. Lines of something else are passed over.
    """
    images = {}
    for _, values in parse_lines(_read_lines(folder)):
        try:
            images[str(values["sha256"])] = StoredImage(
                path=str(values["path"]),
                sha256=str(values["sha256"]),
                md5=str(values["md5"]),
                time=str(values["time"]),
                reasons=tuple(map(str, values["reasons"])),
                label=str(values["label"]),
                model=str(values["model"]),
            )
        except (KeyError, TypeError):
            continue
    return images


def files_by_sha256(folder: Path) -> dict[str, Path]:
    """Returns the files of the images that are in the folder; their names end in their SHA-256."""
    files = (file for file in folder.glob("*/**/*") if file.is_file())
    return {file.stem.rpartition("_")[2]: file for file in files}


def take(
    labelled: Sequence[tuple[StoredImage, str]], store: KeptImages | None, folder: Path
) -> Outcome:
    """Copies images to the folder that are not in it, with where they came from.

    Images that it holds stay where they are, except for one that turns out to be of no class, which
    moves to the negatives.

    Args:
        labelled: Images, each with its class or `labels.NONE`.
        store: Where they are read from; None if only those in the folder count.
        folder: The folder, which is created.

    Raises:
        OSError: The store cannot be read, or the folder cannot be written.
    """
    steps, outcome = _steps(labelled, folder), Outcome()
    if not steps:
        return outcome
    folder.mkdir(parents=True, exist_ok=True)
    lines, file = _read_lines(folder), folder / _PROVENANCE_FILE
    # Before the images: whenever the process is killed, each image has its line.
    write_whole(file, _with_lines_of(steps, lines))
    done = [step for step in steps if _place(step, store, folder, outcome)]
    if len(done) < len(steps):
        write_whole(file, _with_lines_of(done, lines))
    return outcome


def _steps(labelled: Sequence[tuple[StoredImage, str]], folder: Path) -> list[_Step]:
    present = files_by_sha256(folder)
    steps = []
    for image, label in labelled:
        before = present.get(image.sha256)
        if before is None:
            steps.append(_Step(image, _path(image, label), None))
        elif label == NONE and before.relative_to(folder).parts[0] != NONE:
            steps.append(_Step(image, Path(NONE, KIND, before.name), before))
    return steps


def _path(image: StoredImage, label: str) -> Path:
    """Returns the path of an image: CLASS/2026-11-28_drone-classifier_3_SHA256.jpg."""
    origin = file_name(f"{image.day} {image.model}")
    name = f"{origin}_{image.sha256}{Path(image.path).suffix}"
    return Path(NONE, KIND, name) if label == NONE else Path(folder_name(label), name)


def _place(step: _Step, store: KeptImages | None, folder: Path, outcome: Outcome) -> bool:
    """Puts an image in its place; returns whether it is there now."""
    target = folder / step.target
    if step.before is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        step.before.replace(target)
        return True
    try:
        content = store.read(step.image.path) if store else None
    except FileNotFoundError:
        content = None
    if content is None:
        outcome.gone.append(step.image.path)
        return False
    # A power cut may have left a file of the store empty or short.
    if hashlib.sha256(content).hexdigest() != step.image.sha256:
        outcome.damaged.append(step.image.path)
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, content, folder / _PARTIAL_FILE)
    outcome.num_new += 1
    return True


def _read_lines(folder: Path) -> bytes:
    file = folder / _PROVENANCE_FILE
    return file.read_bytes() if file.exists() else b""


def _with_lines_of(steps: Sequence[_Step], lines: bytes) -> bytes:
    """Returns the provenance file with a line for each of these images; other lines stay."""
    own = {step.image.sha256: _line(step) for step in steps}
    others = [
        line.rstrip(b"\n") + b"\n"
        for line, values in parse_lines(lines)
        if str(values.get("sha256")) not in own
    ]
    return b"".join([*others, *own.values()])


def _line(step: _Step) -> bytes:
    record = {
        "source": f"served by {step.image.model}",
        "licence": "",
        **asdict(replace(step.image, path=step.target.as_posix())),
        "served_as": step.image.label,
    }
    text = json.dumps(record, ensure_ascii=False, sort_keys=True)
    # Half of a surrogate pair, which a name may hold, becomes an escape that JSON reads back.
    return text.encode("utf-8", "backslashreplace") + b"\n"
