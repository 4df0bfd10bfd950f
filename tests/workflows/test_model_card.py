"""The model card of a registered version."""

import json
from pathlib import Path

import pytest

from drone.collect import provenance
from drone.data.dataset import SPLITS, Dataset, open_dataset
from drone.data.prepare.plan import PrepareSettings, map_sequentially, plan_dataset
from drone.data.prepare.write import write_dataset
from drone.evaluation.model_card import UNKNOWN_LICENCE, ModelFacts, limits, render
from drone.labels import CLASSES
from drone.serving.preprocess import Preprocessing
from drone.tracking import artifacts
from drone.workflows.model_card import card_artifact, count_licences
from tests.conftest import SMALL_PX, MadeUp, RunJob
from tests.faults.tracked_model import TrackedModel, call, stored, tracked

__all__ = ["call", "stored", "tracked"]  # Fixtures.

pytestmark = pytest.mark.slow


def test_a_version_has_its_card(
    tracked: TrackedModel, dataset: Dataset, call: RunJob, tmp_path: Path
) -> None:
    artifact = card_artifact("drone-classifier", "1")
    card = artifacts.download(tracked.run_id, artifact, tmp_path).read_text("utf-8")
    report = next(tracked.folder.glob("reports/*/test/metrics.json"))
    metrics = json.loads(report.read_text())
    assert f"{metrics['accuracy']:.1%} of {metrics['support']} test images right" in card
    for name in CLASSES:
        row = metrics["by_class"][name]
        assert f"<td>{name}</td><td>{row['precision']:.3f}</td><td>{row['recall']:.3f} (" in card
        rows = [dataset.rows(split) for split in SPLITS]
        counts = [int((part["class_name"] == name).sum()) for part in rows]
        assert f"<td>{name}</td>" + "".join(f"<td>{count}</td>" for count in counts) in card
    assert dataset.fingerprint in card and "Operating point" in card
    assert "minimum recall" in card and "passed</b>" in card
    done = call(
        "export",
        "--model",
        "models:/drone-classifier@champion",
        "--out",
        tmp_path / "out",
        "--unchecked",
        "--json",
    )
    assert done.code == 0, done.err
    assert (tmp_path / "out" / "model_card.html").read_text("utf-8") == card
    done = call("export", "--run", tracked.run_id, "--out", tmp_path / "out", "--unchecked")
    assert done.code == 0 and not (tmp_path / "out" / "model_card.html").exists()


def test_limits_come_from_the_figures(tracked: TrackedModel) -> None:
    report = next(tracked.folder.glob("reports/*/test/metrics.json"))
    metrics = json.loads(report.read_text())
    rows = metrics["conditions"]["rows"]
    for row in rows:
        value = 0.5 if (row["condition"], row["severity"]) in (("blur", 2), ("blur", 3)) else 0.9
        row["drone_recall"]["value"] = value
    metrics["by_class"][CLASSES[3]]["support"] = 0
    facts = ModelFacts(
        name="<b>",
        version="3",
        classes=CLASSES,
        training={"run": "<i>"},
        images=artifacts.images_of(tracked.run_id),
        licences={"CC <BY>": 3},
        metrics=metrics,
        decision={"passed": False, "when": "now", "rules": []},
    )
    found = limits(facts)
    [blur] = [row for row in rows if (row["condition"], row["severity"]) == ("blur", 2)]
    assert [line for line in found if "missed" in line] == [
        f"From this level on drones are missed: {blur['text']} (recall 0.50)."
    ]
    assert f"Not tested, for lack of images: {CLASSES[3]}." in found
    assert any("was not tested on images of anything else" in line for line in found)
    page = render(facts)
    assert "&lt;b&gt;" in page and "CC &lt;BY&gt; (3)" in page and "<i>" not in page


def test_licences_of_collected_images(made_up: MadeUp, tmp_path: Path) -> None:
    settings = PrepareSettings(preprocessing=Preprocessing(side_px=SMALL_PX))
    planned = plan_dataset([made_up.folder], settings, map_sequentially)
    write_dataset(planned, tmp_path / "set", map_sequentially)
    dataset = open_dataset(tmp_path / "set")
    kept = dataset.manifest[dataset.manifest["kept"]]
    assert count_licences(dataset) == {UNKNOWN_LICENCE: len(kept)}
    fields = dict.fromkeys(provenance.Record.__dataclass_fields__, "")
    lines = [
        {**fields, "url": f"u{number}", "md5": md5, "licence": "CC0", "size_bytes": 1}
        for number, md5 in enumerate(kept["md5"].iloc[:5])
    ]
    file = made_up.folder / provenance.FILE_NAME
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    try:
        assert count_licences(dataset) == {UNKNOWN_LICENCE: len(kept) - 5, "CC0": 5}
    finally:
        file.unlink()
