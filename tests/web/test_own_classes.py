"""Classes of one's own, from raw folders to the page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ImageOps
from playwright.sync_api import expect

from drone.data.dataset import Dataset, open_dataset
from drone.labels import CLASSES
from drone.serving.predictor import Predictor
from drone.synth.drawing import draw
from tests.conftest import SMALL_PX, Done, RunJob
from tests.web.conftest import Visit, classify
from tests.web.site import Site

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

SIZE = ("--preprocessing.side-px", SMALL_PX)
SHORT = ("--weights", "none", "--epochs", 2, "--batch-size", 8, "--precision", "fp32", "--json")
LENIENT = (
    *("--limits.min-recall", 0, "--limits.max-ece", 1, "--limits.min-accepted", 0),
    *("--limits.min-confidence", 0, "--limits.max-recall-drop", 1, "--json"),
)

SEVEN = """
- {name: Gulls, short: GU, folders: [möwen]}
- {name: Birds of prey, short: BP}
- {name: Multirotors, short: MR}
- {name: Fixed wings, short: FW, role: drone}
- {name: Airliners, short: AL}
- {name: Helicopters, short: HE}
- {name: "747", short: "747"}
"""


def draw_folders(folder: Path, names: Sequence[str]) -> None:
    """Class folders; those beyond four show the four drawings in other colours."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(12):
            image = draw(CLASSES[number % 4], 90, 80, np.random.default_rng([number, index]))
            image = ImageOps.invert(image) if number >= 4 else image
            image.save(folder / name / f"{index}.png")


def splits_of(dataset: Dataset) -> dict[str, str]:
    manifest = dataset.manifest
    return dict(zip(manifest["path"], manifest["split"], strict=True))


def result(done: Done) -> dict[str, Any]:
    assert done.code == 0, done.err
    found: dict[str, Any] = done.result
    return found


def test_a_model_of_two_classes_gets_a_third(
    run_job: RunJob, call_job: RunJob, tmp_path: Path
) -> None:
    prepare = ("prepare", "--raw", "raw", "--classes", "folders", "--out", "set", *SIZE, "--json")
    draw_folders(tmp_path / "raw", ["Birds", "Drones"])
    result(run_job(*prepare))
    before = open_dataset(tmp_path / "set")
    assert before.classes.names == ("Birds", "Drones") and before.classes.roles == ("bird", "drone")
    splits_before = splits_of(before)
    run_id = result(run_job("train", "smoke", "--data", "set", *SHORT, "--name", "two"))["run_id"]
    scores = result(call_job("evaluate", "--run", "two", "--json"))
    assert scores["bird_or_drone_accuracy"] == scores["accuracy"]
    assert scores["operating_point"]["at_recall"].keys() == {"0.9", "0.95", "0.99"}
    assert result(call_job("promote", "--run", "two", *LENIENT))["promoted"]

    draw_folders(tmp_path / "raw", ["Birds", "Drones", "Helicopters"])
    result(run_job(*prepare))
    after = open_dataset(tmp_path / "set")
    splits_after = splits_of(after)
    # The images that were there stay in their splits.
    assert splits_before.items() <= splits_after.items()
    done = run_job("train", "smoke", "--data", "set", "--from-run", run_id, *SHORT)
    assert "2 of 3 classes keep their weights; new: Helicopters" in done.err + done.out
    three = result(done)["run_id"]
    result(call_job("evaluate", "--run", three, "--json"))
    unready = call_job("promote", "--run", three, *LENIENT)
    assert unready.code == 1 and "--model models:/drone-classifier@champion" in unready.err
    champion = ("--model", "models:/drone-classifier@champion", "--data", "set")
    old = result(call_job("evaluate", *champion, "--json"))
    assert set(old["by_class"]) == {"Birds", "Drones"}
    assert set(old["left_out"].values()) == {"The model does not know the class Helicopters."}
    document = result(call_job("promote", "--run", three, *LENIENT, "--dry-run"))
    [rule] = [rule for rule in document["rules"] if rule["name"] == "classes"]
    assert "that both know: Birds, Drones; new: Helicopters" in rule["figures"]


def test_seven_classes_reach_the_page(
    run_job: RunJob, call_job: RunJob, tmp_path: Path, site: Site, visit: Visit
) -> None:
    (tmp_path / "classes.yaml").write_text(SEVEN, "utf-8")
    folders = ["MÖWEN", "birds_of_prey", "Multirotor", "Fixed wings", "Airliners", "Helicopters"]
    draw_folders(tmp_path / "raw", [*folders, "747"])
    args = ("--raw", "raw", "--classes", "classes.yaml", "--out", "set", *SIZE)
    done = run_job("prepare", *args, "--json")
    roles = ["bird", "bird", "drone", "drone", "other", "other", "other"]
    assert result(done)["classes"]["roles"] == roles
    # An update takes the classes of the data set.
    again = result(run_job("prepare", "--raw", "raw", "--out", "set", *SIZE, "--json"))
    assert not again["written"]
    result(run_job("train", "smoke", "--data", "set", *SHORT, "--name", "seven"))
    scores = result(call_job("evaluate", "--run", "seven", "--json"))
    at_90 = scores["operating_point"]["at_recall"]["0.9"]
    if at_90:  # Unless the short training takes the drones for none of the classes.
        assert at_90["false_alarms_per_1000_others"]["support"] > 0
    export = ("export", "--run", "seven", "--out", "out", "--page", "page", "--known-above", 0)
    result(call_job(*export, "--alarm-above", 0.3, "--json"))

    predictor = Predictor(tmp_path / "out" / "model.onnx")
    info = json.loads((tmp_path / "page" / "model" / "model.json").read_text())
    assert info["roles"] == roles and info["short_names"][-1] == "747"
    site.add_model((tmp_path / "out" / "model.onnx").read_bytes(), info)
    site.config["api"] = None
    page = visit()
    image = tmp_path / "raw" / "Helicopters" / "0.png"
    expected = predictor.predict(image.read_bytes())
    shown = classify(page, image)
    ranked = sorted(expected.probabilities, key=expected.probabilities.__getitem__)
    # As a set: JavaScript puts names that are numbers first.
    assert set(shown) == set(ranked[-5:])
    assert all(abs(shown[name] - expected.probabilities[name]) < 0.02 for name in shown)
    expect(page.locator("#more-classes-summary")).to_have_text("2 more classes")
    page.locator("#more-classes-summary").click()
    bars = page.locator("#more-probabilities li")
    rest = set(ranked[:2])
    assert {bars.nth(at).locator("span").first.inner_text() for at in range(2)} == rest
    wanted = sorted(rest)[0]
    page.locator("#find-class").fill(wanted.upper())
    expect(page.locator("#more-probabilities li:visible")).to_have_count(1)
    sums = dict.fromkeys(roles, 0.0)
    for probability, role in zip(expected.probabilities.values(), roles, strict=True):
        sums[role] += probability
    assert expected.kind == max(sums, key=sums.__getitem__)
    assert expected.kind_probability == pytest.approx(sums[expected.kind])
    words = {"bird": "A bird", "drone": "A drone", "other": "Neither a bird nor a drone"}
    expect(page.locator("#kind")).to_contain_text(words[expected.kind])
    assert expected.alarm == (sums["drone"] >= 0.3)
    assert page.locator("#alarm").is_visible() == expected.alarm
