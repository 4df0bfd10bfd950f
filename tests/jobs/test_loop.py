"""The loop of docs/loop.md: serve, review, prepare, train, promote; the second champion knows more.

The images are coloured noise. Winged drones are yellow in the first data set, but some of those
that are served are violet, which the first champion has never seen.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drone.data.dataset import open_dataset
from drone.labels import CLASSES, NONE
from drone.serving.predictor import Predictor
from drone.storage.kept_images import KeptImages
from tests.browser import chromium
from tests.conftest import SMALL_PX, run_to_end
from tests.jobs.processes import wait_for
from tests.serving.lambda_events import file_of
from tests.serving.server import served

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

BLUE, RED, GREEN, YELLOW = (60, 90, 220), (220, 60, 60), (60, 190, 70), (225, 205, 50)
VIOLET = (190, 60, 210)

TRAINING = ["--weights", "none", "--precision", "fp32", "--storage", "runs", "--epochs", "16"]
WINGED = CLASSES[3]


def tinted(colour: tuple[int, int, int], number: int) -> bytes:
    rng = np.random.default_rng([*colour, number])
    light = Image.fromarray(rng.integers(90, 256, (7, 9), np.uint8)).resize((96, 80))
    pixels = np.asarray(light, np.float32)[:, :, None] * np.float32(colour) / 255
    return file_of(Image.fromarray(pixels.astype(np.uint8)), "PNG")


def run(folder: Path, job: str, *args: object) -> dict:
    done = run_to_end(job, *args, "--json", cwd=folder)
    assert done.code == 0, done.err
    return done.result


def train_and_promote(folder: Path, seed: int, champion: bool) -> None:
    """Trains a run on the data set; it has to pass the gate."""
    trained = run(folder, "train", "scratch", "--data", "set", *TRAINING, "--seed", seed)
    run(folder, "evaluate", "--run", trained["run_id"], "--no-conditions")
    if champion:
        uri = "models:/drone-classifier@champion"
        run(folder, "evaluate", "--model", uri, "--data", "set", "--no-conditions")
    promoted = run(folder, "promote", "--run", trained["run_id"])
    assert promoted["promoted"], promoted["rules"]


def export(folder: Path, name: str) -> Predictor:
    uri = "models:/drone-classifier@champion"
    run(folder, "export", "--model", uri, "--out", name)
    return Predictor(folder / name / "model.onnx", threads=1)


def share_right(predictor: Predictor, images: list[bytes], label: str) -> float:
    return float(np.mean([predictor.predict(image).label == label for image in images]))


def decide(page_file: Path, keys: Mapping[str, str], target: Path) -> None:
    """Decides on every image of the page by the key for its md5, and exports the decisions."""
    with chromium() as browser:
        context = browser.new_context(accept_downloads=True)
        page = context.new_page()
        page.goto(page_file.as_uri())
        page.get_by_label("only undecided").check()
        while page.locator("#one").is_visible():
            md5 = str(page.locator("#image").get_attribute("data-md5"))
            assert "the model says" in page.locator("#why").inner_text()
            page.keyboard.press(keys[md5])
        with page.expect_download() as download:
            page.get_by_role("button", name="Export decisions").click()
        download.value.save_as(target)
        context.close()


def test_the_second_champion_gets_right_what_the_first_got_wrong(tmp_path: Path) -> None:
    for name, colour in zip(CLASSES, (BLUE, RED, GREEN, YELLOW), strict=True):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for number in range(40):
            (tmp_path / "raw" / name / f"{number}.png").write_bytes(tinted(colour, number))
    prepare = ["--raw", "raw", "--out", "set", "--preprocessing.side-px", SMALL_PX]
    run(tmp_path, "prepare", *prepare)
    train_and_promote(tmp_path, seed=0, champion=False)
    first = export(tmp_path, "first")
    fresh = [tinted(VIOLET, number) for number in range(1000, 1040)]
    assert share_right(first, fresh, WINGED) < 0.2

    # Served: violet drones, a bird that the model knows, noise that is none of the classes.
    violet = [tinted(VIOLET, number) for number in range(60)]
    rng = np.random.default_rng(1)
    noise = [file_of(Image.fromarray(rng.integers(0, 256, (90, 90, 3), np.uint8)), "PNG")]
    bird, private = tinted(BLUE, 500), tinted(VIOLET, 501)
    copy_of_raw = tinted(BLUE, 0)
    uri = "models:/drone-classifier@champion"
    keep = ["--keep", "served", "--keep-share", "1", "--keep-unsure", "--keep-none"]
    with served(tmp_path, "--model", uri, *keep) as server:
        for image in (*violet, *noise, bird, copy_of_raw):
            assert server.request("POST", "/predict", image)[0] == 200
        assert server.request("POST", "/predict", private, **{"X-Do-Not-Keep": "1"})[0] == 200
        store = KeptImages(str(tmp_path / "served"))
        wait_for(lambda: len(store.files()) >= 2 * 63)
    assert {image.md5 for image in store.images()} == {
        md5_of(image) for image in (*violet, *noise, bird, copy_of_raw)
    }

    reviewed = run(tmp_path, "review", "--served", "served", "--data", "set", "--model", uri)
    assert reviewed["images"] == 63 and reviewed["shown"] == 62
    keys = {md5_of(image): "4" for image in violet}
    keys |= {md5_of(image): "n" for image in noise} | {md5_of(bird): "Space"}
    decide(tmp_path / "review.html", keys, tmp_path / "decisions.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "decisions.jsonl").read_text().splitlines()]
    assert {line["md5"] for line in lines} == set(keys)

    run(tmp_path, "prepare", *prepare, "--served", "served", "--decisions", "decisions.jsonl")
    manifest = open_dataset(tmp_path / "set").manifest
    rows = manifest[manifest["root"].str.contains("set-served")].set_index("md5")
    assert set(rows.loc[[md5_of(image) for image in violet], "class_name"]) == {WINGED}
    assert rows.loc[md5_of(noise[0]), ["class_name", "kind"]].tolist() == [NONE, "served"]
    # Images of a data set are not reviewed again.
    again = run(tmp_path, "review", "--served", "served", "--data", "set", "--model", uri)
    assert again["shown"] == 0

    in_use = run(tmp_path, "evaluate", "--served", "served", "--data", "set")
    (week,) = in_use["by_week"]
    # The champion was right on the bird, on its copy in the data set, and maybe on the noise.
    assert (week["images"], week["labelled"]) == (63, 63) and week["model"] == "drone-classifier 1"
    assert 2 / 63 <= week["accuracy"] < 0.2 and week["low"] < week["accuracy"] < week["high"]

    train_and_promote(tmp_path, seed=1, champion=True)
    second = export(tmp_path, "second")
    assert share_right(second, fresh, WINGED) > 0.8


def md5_of(image: bytes) -> str:
    return hashlib.md5(image, usedforsecurity=False).hexdigest()
