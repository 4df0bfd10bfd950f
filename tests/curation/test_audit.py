"""The audit counts what is in the raw folders."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from drone.curation.audit import leakage
from drone.curation.audit_page import write_audit
from drone.data.dataset import open_dataset
from drone.data.prepare.plan import PrepareSettings, map_sequentially, plan_dataset
from drone.data.prepare.split import SplitSettings
from drone.data.prepare.write import write_dataset
from drone.synth.raw_folder import SynthSettings, write_raw_folder
from tests.conftest import MadeUp
from tests.data.preparing import SMALL, prepare


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    """With drawings of every size."""
    folder = tmp_path_factory.mktemp("all-sizes") / "raw"
    return MadeUp(folder, write_raw_folder(folder, SynthSettings(images_per_class=10, seed=3)))


@pytest.fixture(scope="module")
def dataset_folder(made_up: MadeUp, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audited") / "set"
    settings = PrepareSettings(policy="first", preprocessing=SMALL.preprocessing)
    planned = plan_dataset([made_up.folder], settings, map_sequentially)
    with_source = planned.manifest.loc[planned.manifest["kept"], "md5"].head(5)
    lines = [
        json.dumps(
            {"md5": md5, "source": "open\u2028verse", "licence": f"by {number // 3}.0"},
            ensure_ascii=False,
        )
        for number, md5 in enumerate(with_source)
    ]
    file = made_up.folder / "provenance.jsonl"
    file.write_text("\n".join([*lines, "3", '{"md5": "cut sho']))
    try:
        return write_dataset(planned, out, map_sequentially, write_audit=write_audit)[0].folder
    finally:
        file.unlink()


def test_the_audit_counts_what_is_there(made_up: MadeUp, dataset_folder: Path) -> None:
    truth, tables = made_up.truth, dataset_folder / "tables"
    errors = pd.read_csv(tables / "errors.csv")
    assert dict(zip(errors["path"], errors["reason"], strict=True)) == truth.broken
    copies = pd.read_csv(tables / "copies.csv")
    sets = [sorted(paths) for _, paths in copies.groupby("content")["path"]]
    assert sorted(sets) == sorted(truth.exact_duplicates)
    across = {
        path
        for paths in truth.exact_duplicates
        if len({p.split("/")[0] for p in paths}) > 1
        for path in paths
    }
    assert set(copies[copies["across"]]["path"]) == across
    near = pd.read_csv(tables / "near_duplicates.csv")
    assert sorted(sorted(paths) for _, paths in near.groupby("group")["path"]) == sorted(
        truth.near_duplicates
    )
    sizes = pd.read_csv(tables / "sizes.csv").set_index("bin_px")["total"]
    manifest = open_dataset(dataset_folder).manifest
    longer = manifest.loc[manifest["width"] > 0, ["width", "height"]].max(axis=1)
    assert sizes.iloc[:-1].sum() == len(longer) and sizes.iloc[-1] == (longer < 224).sum()
    assert (sizes.iloc[:-1] > 0).all()  # Every bin has a drawing.
    formats = pd.read_csv(tables / "formats.csv")
    named = [
        path for path, kind in truth.unusual.items() if kind in ("PNG named jpg", "JPEG named png")
    ]
    assert formats["misnamed"].sum() == len(named)
    origins = pd.read_csv(tables / "provenance.csv").set_index("licence")["images"]
    kept = int(manifest["kept"].sum())
    assert origins.to_dict() == {"by 0.0": 3, "by 1.0": 2, "not recorded": kept - 5}
    html = (dataset_folder / "audit.html").read_text()
    assert "http://" not in html and "https://" not in html
    assert html.count("data:image/jpeg;base64,") > 50
    (sentence,) = re.findall(r"<b>Leakage\.</b> (.*?)</p>", html)
    assert "copy of the same pixels in train" in sentence


def test_the_leakage_is_what_random_splits_have(made_up: MadeUp) -> None:
    frame = plan_dataset(
        [made_up.folder], PrepareSettings(policy="first"), map_sequentially
    ).manifest
    expected = leakage(frame, SplitSettings())
    images = frame[frame["width"] > 0]
    rng = np.random.default_rng(0)
    exact = []
    for _ in range(400):
        split = rng.choice(["train", "validation", "test"], len(images), p=[0.7, 0.15, 0.15])
        train = set(images["md5"][split == "train"])
        exact.append(images["md5"][split == "test"].isin(train).sum())
    assert expected.exact == pytest.approx(np.mean(exact), rel=0.15)
    assert expected.twins > expected.exact > 0
    assert expected.test == pytest.approx(0.15 * len(images))


def test_a_dark_blurred_image_is_an_outlier_and_one_of_one_colour_an_error(
    made_up: MadeUp, tmp_path: Path
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "set"
    shutil.copytree(made_up.folder, raw)
    Image.new("RGB", (300, 200), "black").save(raw / "Winged Drones" / "black.png")
    dark = Image.linear_gradient("L").point(lambda value: value // 12)
    dark.save(raw / "Winged Drones" / "dark.png")
    tables = prepare(raw, out, write_audit=write_audit).folder / "tables"
    outliers = pd.read_csv(tables / "outliers.csv").set_index("path")["what"]
    assert "blurred" in set(outliers.loc[["Winged Drones/dark.png"]])
    errors = pd.read_csv(tables / "errors.csv").set_index("path")["reason"]
    assert errors["Winged Drones/black.png"] == "blank"
    assert "Winged Drones/black.png" not in outliers.index
