"""The review page: doubtful pictures for a person to decide on, in one file without a server."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from PIL import Image

from drone.data import audit, audit_page
from drone.data.clean import ACROSS
from drone.data.dataset import Dataset
from drone.data.embed import as_jpeg
from drone.data.roots import open_root

SUSPECT, COPIES, NEAR = "suspect", "copies", "near"
"""Why a picture is shown: a doubtful label, copies in several classes, near duplicates."""

Item = dict[str, Any]

_PICTURE_PX = 400


def items(
    manifest: pd.DataFrame, suspects: pd.DataFrame, decided: Mapping[str, object]
) -> list[Item]:
    """The pictures to decide on, worst first, each once.

    Copies in several classes come first, since one of their labels must be wrong; then doubtful
    labels, near duplicates of several classes, and the other near duplicates.

    Args:
        manifest: of a data set.
        suspects: columns `md5`, `suggested`, `confidence`, worst first.
        decided: md5 of pictures that a person has decided on before; they are not shown again.

    Returns:
        For each picture `md5`, `path`, `given`, `kinds`, `suggested` and `confidence` (of doubtful
        labels), `places` (of copies: all paths) and `twins` (md5 of its near duplicates).
    """
    by_md5 = manifest.sort_values("kept", ascending=False).drop_duplicates("md5").set_index("md5")
    found: dict[str, Item] = {}

    def item(md5: str, kind: str) -> Item:
        row = by_md5.loc[md5]
        entry = found.setdefault(
            md5,
            {
                "md5": md5,
                "path": row["path"],
                "given": row["class_name"],
                "kinds": [],
                "places": [],
                "twins": [],
            },
        )
        entry["kinds"].append(kind)
        return entry

    across = manifest[manifest["reason"] == ACROSS]
    of_several = manifest[manifest["md5"].isin(across["md5"])]
    for md5, rows in of_several.groupby("md5"):
        item(str(md5), COPIES)["places"] = sorted(rows["path"])
    for row in suspects.to_dict("records"):
        entry = item(row["md5"], SUSPECT)
        entry["suggested"] = row["suggested"]
        entry["confidence"] = round(float(row["confidence"]), 3)
    near = audit.near_duplicates(manifest)
    for _, rows in near.groupby("group", sort=False):
        for md5 in rows["md5"]:
            item(md5, NEAR)["twins"] = [other for other in rows["md5"] if other != md5]
    return [entry for md5, entry in found.items() if md5 not in decided]


def write(
    target: Path,
    dataset: Dataset,
    shown: Sequence[Item],
    picture_of: Callable[[str], str],
    facts: Mapping[str, str],
) -> None:
    """Writes the page.

    Args:
        target: the HTML file.
        dataset: that is reviewed.
        shown: see `items`.
        picture_of: gives a picture as a data URI by its md5; empty if there is none.
        facts: said at its head.
    """
    wanted = {md5 for entry in shown for md5 in (entry["md5"], *entry["twins"])}
    content = {
        "fingerprint": dataset.fingerprint,
        "classes": list(dataset.classes),
        "items": list(shown),
        "pictures": {md5: picture_of(md5) for md5 in sorted(wanted)},
    }
    environment = Environment(
        loader=PackageLoader("drone.evaluation"), autoescape=select_autoescape()
    )
    # A file's name must not end the script that holds the data.
    data = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    html = environment.get_template("review.html").render(
        data=data, facts=facts, title=f"Review of data set {dataset.fingerprint[:12]}"
    )
    temporary = target.with_suffix(".tmp")
    temporary.write_text(html, "utf-8")
    temporary.rename(target)


def pictures(dataset: Dataset) -> Callable[[str], str]:
    """Gives pictures of a data set as data URIs by their md5, empty if there is none.

    They come from the raw folder if it is there, else as the model sees them.
    """
    rows = dataset.manifest.sort_values("pixel_row", ascending=False).drop_duplicates("md5")
    by_md5 = rows.set_index("md5")[["pixel_row", "root", "path"]].to_dict("index")

    def picture_of(md5: str) -> str:
        row = by_md5[md5]
        picture = audit_page.thumbnail(
            row["root"], row["path"], dataset.preprocessing, open_root, _PICTURE_PX
        )
        if picture or row["pixel_row"] < 0:
            return picture
        return as_jpeg(Image.fromarray(dataset.pixels(np.array([row["pixel_row"]]))[0]))

    return picture_of
