"""Writes a review page of served images: those first that a label would teach a model most."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from drone.commands import command
from drone.curation import informative, review
from drone.curation.thumbnails import thumbnail
from drone.data.dataset import Dataset
from drone.data.prepare import ledger
from drone.data.prepare.listing import RawFile
from drone.data.prepare.near_duplicates import hash_groups
from drone.data.prepare.perceptual_hash import HASH_BYTES
from drone.data.prepare.plan import command_for
from drone.data.prepare.scan import ScanRecord, scan_file
from drone.errors import ConfigError, ImageError
from drone.serving.keeping import REJECTED, SAMPLED, UNSURE
from drone.serving.predictor import Outputs, Prediction, Predictor
from drone.storage import dataset_cache
from drone.storage.kept_images import KeptImages, StoredImage
from drone.storage.raw_roots import open_root
from drone.workflows.display import SILENT, Display
from drone.workflows.model_source import ModelSource, NamedModel, fetch_model
from drone.workflows.requests import ReviewRequest
from drone.workflows.review import check_page, with_copies
from drone.workflows.served_images import first_by_md5

_DISPUTED = "disputed"

_KINDS = {
    UNSURE: "unsure when served",
    REJECTED: "none of these when served",
    SAMPLED: "of the sample",
    _DISPUTED: "models disagree",
}

_MAX_TWINS = 6
"""Near duplicates that are shown beside an image."""

_IMAGE_PX = 400


@dataclass(frozen=True)
class ServedReview:
    """What a review page of served images shows."""

    num_images: int
    """Images in the store."""

    num_shown: int

    left_out: Mapping[str, int]
    """Number of images by the reason for which they are not shown."""

    prepare_again: str
    """Command that takes the images and the decisions on them into a data set."""


@dataclass(frozen=True)
class _Examined:
    """A served image, and what the models say of it now."""

    stored: StoredImage
    record: ScanRecord
    predictions: Sequence[Prediction]
    """Of the model and of the candidate, if there is one."""

    beliefs_MK: NDArray[np.float64]
    """Beliefs of these models; see `informative.beliefs`."""


def write_served_page(request: ReviewRequest, display: Display = SILENT) -> ServedReview:
    """Ranks the images of a store and writes the page.

    Raises:
        DataError: The folder of the page does not exist, or the store has no images.
        ConfigError: The candidate has other classes than the model.
        RunError: There is no such model.
    """
    check_page(request.out)
    assert request.served is not None
    store = KeptImages(request.served)
    images = list(first_by_md5(store.images(), display.warn).values())
    dataset = dataset_cache.open_at(request.data, notify=display.show) if request.data else None
    with TemporaryDirectory() as folder:
        predictors = _predictors(request, Path(folder))
    classes = predictors[0].info.classes
    left_out: Counter[str] = Counter()
    new = _without_decided(images, dataset, left_out)
    examined = _examine(new, store, predictors, display)
    left_out["no longer readable"] = len(new) - len(examined)
    examined = _without_known(examined, dataset, left_out)
    order = _order(examined, request.max_suspects)
    twins = _twins(examined, order)
    left_out["near duplicates of others"] = sum(map(len, twins.values()))
    left_out["beyond --max-suspects"] = len(examined) - len(order) - sum(map(len, twins.values()))
    items = [_item(examined[position], twins[position]) for position in order]
    facts = {
        "served images": str(len(images)),
        "images to decide on": str(len(items)),
        **{reason: str(count) for reason, count in left_out.items() if count},
    }
    # By the location: a page that is written anew, with more images, keeps the decisions.
    key = hashlib.sha256(store.location.encode()).hexdigest()
    subject = review.Subject("Review of served images", key, classes, _kinds(predictors), True)
    by_md5 = {one.stored.md5: one.stored.path for one in examined}

    def load_image(md5: str) -> str:
        settings = predictors[0].info.preprocessing
        return thumbnail(store.location, by_md5[md5], settings, open_root, _IMAGE_PX)

    review.write_items(request.out, subject, items, load_image, facts)
    return ServedReview(
        num_images=len(images),
        num_shown=len(items),
        left_out={reason: count for reason, count in left_out.items() if count},
        prepare_again=_prepare_again(dataset, request.served),
    )


def _predictors(request: ReviewRequest, folder: Path) -> list[Predictor]:
    """Returns the model and, if there is one, the candidate, both loaded."""
    sources: list[ModelSource] = [request]
    if request.candidate:
        sources.append(NamedModel(request.candidate, request.experiment))
    predictors = [
        # One thread each, since every image has a thread of its own.
        Predictor(fetch_model(source, folder / str(number)).onnx, threads=1)
        for number, source in enumerate(sources)
    ]
    for predictor in predictors:
        predictor.start()
    own, other = predictors[0].info.classes, predictors[-1].info.classes
    if own != other:
        raise ConfigError(
            f"--candidate {request.candidate} has the classes {', '.join(other)}, and the model "
            f"{', '.join(own)}. Name a candidate with the same classes."
        )
    return predictors


def _kinds(predictors: Sequence[Predictor]) -> dict[str, str]:
    return {kind: name for kind, name in _KINDS.items() if kind != _DISPUTED or predictors[1:]}


def _without_decided(
    images: Sequence[StoredImage], dataset: Dataset | None, left_out: Counter[str]
) -> list[StoredImage]:
    """Returns the images that are not in the data set and were not decided on before."""
    if dataset is None:
        return list(images)
    decisions = ledger.by_hand(ledger.read(dataset.folder / ledger.LEDGER_FILE))
    known = {*with_copies(decisions, dataset.manifest), *dataset.manifest["md5"]}
    new = [image for image in images if image.md5 not in known]
    left_out["in the data set or decided on before"] = len(images) - len(new)
    return new


def _examine(
    images: Sequence[StoredImage],
    store: KeptImages,
    predictors: Sequence[Predictor],
    display: Display,
) -> list[_Examined]:
    """Returns those images that can still be read, with predictions."""

    def examine(image: StoredImage) -> _Examined | None:
        raw = RawFile(root=store.location, path=image.path, class_name="")
        record = scan_file(raw, predictors[0].info.preprocessing, open_root)
        if record.problem:
            return None
        try:
            data = store.read(image.path)
            outputs = [
                predictor.predict_outputs(predictor.to_pixels(data)[None])
                for predictor in predictors
            ]
        except (OSError, ImageError):
            return None
        pairs = list(zip(predictors, outputs, strict=True))
        return _Examined(
            image,
            record,
            [predictor.to_predictions(output)[0] for predictor, output in pairs],
            np.concatenate([_beliefs(output, predictor) for predictor, output in pairs]),
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(examine, images)
        every = [next(results) for _ in display.track(range(len(images)), "images", len(images))]
    return [one for one in every if one is not None]


def _beliefs(outputs: Outputs, predictor: Predictor) -> NDArray[np.float64]:
    return informative.beliefs(outputs, predictor.info.known_above)


def _without_known(
    examined: Sequence[_Examined], dataset: Dataset | None, left_out: Counter[str]
) -> list[_Examined]:
    """Returns the images without copies and near duplicates of what the data set keeps."""
    if dataset is None:
        return list(examined)
    kept = dataset.manifest[dataset.manifest["kept"]]
    hashes_NB = _hashes([*(one.record.phash for one in examined), *kept["phash"]])
    groups_N = hash_groups(hashes_NB)
    of_dataset = set(groups_N[len(examined) :].tolist())
    new = [one for one, group in zip(examined, groups_N, strict=False) if group not in of_dataset]
    left_out["near duplicates of the data set's"] = len(examined) - len(new)
    return new


def _hashes(values: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex("".join(values)), np.uint8).reshape(-1, HASH_BYTES)


def _order(examined: Sequence[_Examined], max_images: int) -> list[int]:
    """Returns the positions of the images to show, the one that teaches most first."""
    if not examined:
        return []
    beliefs_NMK = np.stack([one.beliefs_MK for one in examined])
    first_NK, last_NK = beliefs_NMK[:, 0], beliefs_NMK[:, -1]
    scores_N = informative.uncertainty(first_NK) + informative.disagreement(first_NK, last_NK)
    hashes_NB = _hashes([one.record.phash for one in examined])
    return informative.diverse_order(scores_N, hashes_NB, max_images)


def _twins(examined: Sequence[_Examined], order: Sequence[int]) -> dict[int, list[str]]:
    """Returns the md5 of the near duplicates of each image that is shown, by its position."""
    if not examined:
        return {}
    groups_N = hash_groups(_hashes([one.record.phash for one in examined]))
    return {
        position: [
            examined[other].stored.md5
            for other in np.flatnonzero(groups_N == groups_N[position]).tolist()
            if other != position
        ]
        for position in order
    }


def _item(one: _Examined, twins: Sequence[str]) -> review.Item:
    """Returns an image as the page takes it."""
    prediction, other = one.predictions[0], one.predictions[-1]
    is_disputed = other.label != prediction.label
    kinds = [*one.stored.reasons, *([_DISPUTED] if is_disputed else [])]
    why = (
        f"{one.stored.model} answered {one.stored.label} on {one.stored.day}; the model says "
        f"{prediction.label} now (most probable {_percent(prediction)}, known "
        f"{prediction.known:.2f})."
    )
    if is_disputed:
        why += f" The candidate says {other.label} (most probable {_percent(other)})."
    if len(twins) > _MAX_TWINS:
        why += f" {len(twins)} near duplicates were served as well."
    return {
        "md5": one.stored.md5,
        "path": one.stored.path,
        "given": prediction.label,
        "suggested": other.label if is_disputed else "",
        "why": why,
        "kinds": kinds,
        "places": [],
        "twins": list(twins[:_MAX_TWINS]),
    }


def _percent(prediction: Prediction) -> str:
    name = max(prediction.probabilities, key=prediction.probabilities.__getitem__)
    return f"{name}, {prediction.confidence:.0%}"


def _prepare_again(dataset: Dataset | None, served: str) -> str:
    """Returns the command that takes decisions on the images into a data set."""
    if dataset is None:
        flags = {"served": served, "decisions": "DECISIONS.jsonl"}
        return command("prepare", raw="RAW_FOLDER", out="DATASET", **flags)
    return command_for(dataset, served=served, decisions="DECISIONS.jsonl")
