"""The review page: suspect labels for the user to decide on, in one HTML file without a server."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from PIL import Image

from drone.curation import audit
from drone.curation.thumbnails import thumbnail
from drone.data.dataset import Dataset
from drone.data.embed import heat_map_script, jpeg_data_uri
from drone.data.prepare.roots import open_root
from drone.data.prepare.verdicts import ACROSS
from drone.files import write_whole
from drone.labels import NONE

_SUSPECT, _COPIES, _NEAR = "suspect", "copies", "near"

_KINDS = {
    _SUSPECT: "suspect labels",
    _COPIES: "exact duplicates in several classes",
    _NEAR: "near duplicates",
}
"""Kinds of items, by which the page filters, with their names there."""

Item = dict[str, Any]
"""One image on the page, as JSON; see `build_items`."""

_IMAGE_PX = 400


@dataclass(frozen=True)
class Subject:
    """What is reviewed."""

    title: str
    key: str
    """Hexadecimal digits that name it: the browser stores decisions under them."""

    classes: Sequence[str]
    kinds: Mapping[str, str]
    """Names of the kinds of items by what `Item` calls them."""

    may_be_none: bool = False
    """Whether the user can decide that an image shows none of the classes. Each decision then names
    a class, since the images have none before."""


@dataclass(frozen=True)
class Advice:
    """What would improve a model, for the section below the images."""

    sentences: Sequence[str]
    figure: str
    """Data URI of the learning curve."""


def build_items(
    manifest: pd.DataFrame, suspects: pd.DataFrame, decided_md5: Collection[str]
) -> list[Item]:
    """Collects the images to decide on, worst first, each once.

    Copies in several classes come first, since one of their labels must be wrong; then suspect
    labels, near duplicates of several classes, and the other near duplicates.

    Args:
        manifest: Manifest of the data set.
        suspects: Columns `md5`, `suggested`, `confidence` and `evidence` (for the suggested class,
            from `drone.serving.evidence.encode`), worst first.
        decided_md5: md5 of images that the user has decided on before, and of their copies; they
            are left out.

    Returns:
        For each image `md5`, `path`, `given`, `kinds`, `suggested`, `confidence` and `evidence` (of
        suspect labels), `places` (all paths of its copies) and `twins` (md5 of its near
        duplicates).
    """
    of_classes = manifest[manifest["class_name"] != NONE]
    # Of several copies the page shows the kept one.
    by_md5 = of_classes.sort_values("kept", ascending=False).drop_duplicates("md5").set_index("md5")
    items: dict[str, Item] = {}

    def item_of(md5: str, kind: str) -> Item:
        row = by_md5.loc[md5]
        new = {"md5": md5, "path": row["path"], "given": row["class_name"]}
        item = items.setdefault(md5, {**new, "kinds": [], "places": [], "twins": []})
        item["kinds"].append(kind)
        return item

    across = manifest[manifest["reason"] == ACROSS]
    copies = of_classes[of_classes["content"].isin(across["content"])]
    for content, rows in copies.groupby("content"):
        # One of them stands for all: a decision on it holds for its copies.
        shown = rows.sort_values("kept", ascending=False, kind="stable")["md5"].iloc[0]
        # Negatives are no images to decide on, but a copy among them is a reason to doubt.
        places = manifest.loc[manifest["content"] == content, "path"]
        item_of(shown, _COPIES)["places"] = sorted(places)
    for row in suspects.to_dict("records"):
        item = item_of(row["md5"], _SUSPECT)
        item["suggested"] = row["suggested"]
        item["confidence"] = round(float(row["confidence"]), 3)
        item["evidence"] = row["evidence"]
    near_duplicates = audit.near_duplicates(of_classes)
    for _, rows in near_duplicates.groupby("group", sort=False):
        for md5 in rows["md5"]:
            item_of(md5, _NEAR)["twins"] = [other for other in rows["md5"] if other != md5]
    return [item for md5, item in items.items() if md5 not in decided_md5]


def write_page(
    target: Path,
    dataset: Dataset,
    items: Sequence[Item],
    load_image: Callable[[str], str],
    facts: Mapping[str, str],
    advice: Advice,
) -> None:
    """Writes the review page of a data set.

    Args:
        target: HTML file to write.
        dataset: The data set under review.
        items: Result of `build_items`.
        load_image: Returns an image as a data URI by its md5, empty if there is none.
        facts: Names and values to show at the top.
        advice: What would improve a model.
    """
    title = f"Review of data set {dataset.fingerprint[:12]}"
    subject = Subject(title, dataset.fingerprint, dataset.classes, _KINDS)
    write_items(target, subject, items, load_image, facts, advice)


def write_items(
    target: Path,
    subject: Subject,
    items: Sequence[Item],
    load_image: Callable[[str], str],
    facts: Mapping[str, str],
    advice: Advice | None = None,
) -> None:
    """Writes a review page of any images; see `write_page`."""
    shown_md5 = {md5 for item in items for md5 in (item["md5"], *item["twins"])}
    content = {
        "fingerprint": subject.key,
        "classes": list(subject.classes),
        "none": NONE if subject.may_be_none else "",
        "items": list(items),
        "images": {md5: load_image(md5) for md5 in sorted(shown_md5)},
    }
    environment = Environment(
        loader=PackageLoader("drone.curation"), autoescape=select_autoescape()
    )
    # A file name that contains "</script>" must not end the script element that holds the data.
    data = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    html = environment.get_template("review.html").render(
        data=data,
        facts=facts,
        advice=advice,
        kinds=subject.kinds,
        heat_map=heat_map_script(),
        title=subject.title,
    )
    # Replaced in one step: the user may have the old page open and reload it.
    write_whole(target, html.encode())


def image_loader(dataset: Dataset) -> Callable[[str], str]:
    """Returns a function that loads an image as a data URI by its md5, empty if there is none.

    It reads the raw file where that is available, else the packed pixels.
    """
    # Of several copies the packed one first, since only it has pixels to fall back on.
    rows = dataset.manifest.sort_values("pixel_row", ascending=False).drop_duplicates("md5")
    by_md5 = rows.set_index("md5")[["pixel_row", "root", "path"]].to_dict("index")

    def load_image(md5: str) -> str:
        row = by_md5[md5]
        image = thumbnail(row["root"], row["path"], dataset.preprocessing, open_root, _IMAGE_PX)
        if image or row["pixel_row"] < 0:
            return image
        return jpeg_data_uri(Image.fromarray(dataset.pixels(np.array([row["pixel_row"]]))[0]))

    return load_image
