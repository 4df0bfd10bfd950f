"""The review of a data set in a real browser, from its suspect labels to its next version."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from playwright.sync_api import Browser, Page
from torchvision.models import mobilenet_v2

from drone.data.dataset import open_dataset
from drone.data.prepare.plan import PrepareSettings, map_sequentially, plan_dataset
from drone.data.prepare.verdicts import ACROSS
from drone.data.prepare.write import write_dataset
from drone.labels import CLASSES, ClassSet
from drone.serving.preprocess import Preprocessing
from drone.synth.drawing import draw
from tests.browser import chromium
from tests.conftest import SMALL_PX, MadeUp, RunJob


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: which labels are suspect does not matter here."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(mobilenet_v2().state_dict(), file)
    return file


@pytest.fixture
def reviewed(made_up: MadeUp, tmp_path: Path, weights: Path, call_job: RunJob) -> Path:
    """A folder with a data set in `set` and its review page."""
    settings = PrepareSettings(preprocessing=Preprocessing(side_px=SMALL_PX))
    write_dataset(
        plan_dataset([made_up.folder], settings, map_sequentially),
        tmp_path / "set",
        map_sequentially,
    )
    done = call_job("review", "--data", "set", "--weights", weights, "--json")
    assert done.code == 0, done.err
    (tmp_path / "result.json").write_text(done.out.splitlines()[-1])
    return tmp_path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


def current(page: Page) -> str:
    """The md5 of the image on the page."""
    return str(page.locator("#image").get_attribute("data-md5"))


def embedded(page: Path) -> str:
    """The JSON embedded in the page."""
    return page.read_text().split('id="data">')[1].split("</script>")[0]


def num_decided(page: Page) -> int:
    return int(page.locator("#count").inner_text().split()[0])


def test_deciding_by_keys_and_clicks(
    reviewed: Path,
    browser: Browser,
    made_up: MadeUp,
    weights: Path,
    call_job: RunJob,
    run_job: RunJob,
) -> None:
    result = json.loads((reviewed / "result.json").read_text())
    manifest = open_dataset(reviewed / "set").manifest
    context = browser.new_context(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    requested_urls: list[str] = []
    context.on("request", lambda request: requested_urls.append(request.url))
    page_errors: list[str] = []
    page = context.new_page()
    page.on("pageerror", lambda error: page_errors.append(str(error)))
    page.goto((reviewed / "review.html").as_uri())

    # The advice is folded away, and all of it is in the JSON.
    advice = page.locator("#advice")
    assert not advice.locator("ul").is_visible()
    sentences = advice.locator("li").all_text_contents()
    for item in result["learning_curve"]["by_class"]:
        assert any(item["class_name"] in sentence for sentence in sentences)
    assert advice.locator("img").evaluate(
        "image => image.decode().then(() => image.naturalWidth > 0)"
    )

    # Copies in several classes come first, with the paths of all copies.
    across = set(manifest.loc[manifest["reason"] == ACROSS, "md5"])
    assert page.locator("#count").inner_text() == f"0 of {result['shown']} decided"
    first = current(page)
    assert first in across
    for path in manifest.loc[manifest["md5"] == first, "path"]:
        assert path in page.locator("#why").inner_text()
    assert page.evaluate("document.getElementById('image').naturalWidth") > 0

    page.keyboard.press("4")  # Relabels and moves to the next image.
    second = current(page)
    assert second != first and num_decided(page) == 1
    page.keyboard.press("x")
    third = current(page)
    page.keyboard.press("Space")
    assert num_decided(page) == 3
    fourth = current(page)
    page.keyboard.press("x")
    page.keyboard.press("u")
    assert current(page) == fourth and num_decided(page) == 3
    page.keyboard.press("ArrowLeft")
    assert current(page) == third
    page.get_by_role("button", name="x drop").click()  # Changes the decision, by a click.
    assert num_decided(page) == 3

    # A reload keeps the decisions and moves to the first undecided image.
    page.get_by_label("Your name").fill("Ada")
    page.reload()
    assert num_decided(page) == 3 and current(page) == fourth
    assert page.get_by_label("Your name").input_value() == "Ada"

    # What a suggestion rests on is drawn over its image, if it is switched on.
    page.locator("#kind").select_option("suspect")
    overlay = page.locator("#heat")
    assert not overlay.is_visible()
    page.keyboard.press("e")
    assert overlay.bounding_box() == page.locator("#image").bounding_box()
    items = {item["md5"]: item for item in json.loads(embedded(reviewed / "review.html"))["items"]}
    assert overlay.get_attribute("values") == items[current(page)]["evidence"]
    assert items[current(page)]["suggested"] in page.locator("#rests").inner_text()
    page.keyboard.press("e")
    assert not overlay.is_visible()
    page.locator("#kind").select_option("")

    # In the grid the keys act on the tile that was clicked.
    page.keyboard.press("g")
    tiles = page.locator(".tile")
    assert tiles.count() == result["shown"]
    suspect = page.locator(".tile", has_text="→").nth(0)
    chosen = suspect.get_attribute("data-md5")
    given = manifest.loc[manifest["md5"] == chosen, "class_name"].iloc[0]
    other = next(name for name in CLASSES if name != given)
    suspect.click()
    page.keyboard.press(str(CLASSES.index(other) + 1))
    assert f"now {other}" in page.locator(f".tile[data-md5='{chosen}']").inner_text()

    # Filters: one class, and only what is undecided.
    page.locator("#class").select_option(CLASSES[1])
    shown = page.evaluate("[...document.querySelectorAll('.tile')].map((tile) => tile.dataset.md5)")
    classes = manifest.drop_duplicates("md5").set_index("md5")["class_name"]
    assert shown and set(classes[shown]) == {CLASSES[1]}
    page.locator("#class").select_option("")
    page.get_by_label("only undecided").check()
    assert tiles.count() == result["shown"] - 4
    assert not page_errors
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requested_urls)

    with page.expect_download() as download:
        page.get_by_role("button", name="Export decisions").click()
    download.value.save_as(reviewed / "decisions.jsonl")
    context.close()
    lines = [json.loads(line) for line in (reviewed / "decisions.jsonl").read_text().splitlines()]
    decisions = {line["md5"]: (line["action"], line["class_name"], line["by"]) for line in lines}
    assert decisions == {
        first: ("relabel", CLASSES[3], "Ada"),
        second: ("drop", "", "Ada"),
        third: ("drop", "", "Ada"),
        chosen: ("relabel", other, "Ada"),
    }

    args = ["--raw", made_up.folder, "--out", "set", "--preprocessing.side-px", SMALL_PX]
    prepared = run_job("prepare", *args, "--decisions", "decisions.jsonl", "--json")
    assert prepared.code == 0 and "4 decisions, 4 of them new" in prepared.err
    after = open_dataset(reviewed / "set").manifest
    kept = after[after["kept"]].set_index("md5")["class_name"]
    assert kept[first] == CLASSES[3] and kept[chosen] == other
    assert second not in kept.index and third not in kept.index
    # Decided images are not shown again.
    again = call_job("review", "--data", "set", "--weights", weights, "--json")
    assert again.code == 0, again.err
    data = json.loads(embedded(reviewed / "review.html"))
    assert not {item["md5"] for item in data["items"]} & set(decisions)


def test_the_result_and_the_table_of_suspects(reviewed: Path) -> None:
    result = json.loads((reviewed / "result.json").read_text())
    assert 0 <= result["ceiling"]["low"] <= result["ceiling"]["high"] <= 1
    assert set(result["wrong"]) == set(CLASSES)
    suspects = pd.read_csv(reviewed / "review.csv")
    assert len(suspects) == result["suspects"]
    assert (suspects["given"] != suspects["suggested"]).all()
    assert suspects["quality"].is_monotonic_increasing
    # A file name cannot end the script element that holds the data.
    data = embedded(reviewed / "review.html")
    assert "<" not in data and json.loads(data)["classes"] == list(CLASSES)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data", "nowhere"], "nowhere is not a prepared data set"),
        (
            ["--data", "x", "--weights", "none"],
            "--weights is none: random weights give no features",
        ),
        (["--data", "x", "--out", "page.txt"], "must end in .html"),
        (["--data", "x", "--out", "gone/page.html"], "but there is no folder"),
        (["--data", "x", "--max-suspects", "-1"], "--max-suspects is -1; it must be 0 or more"),
    ],
)
def test_wrong_usage(call_job: RunJob, args: list[str], message: str) -> None:
    done = call_job("review", *args)
    assert done.code in (1, 2) and message in done.err and "Traceback" not in done.err


def test_of_many_classes_those_that_are_likely_have_keys(
    tmp_path: Path, browser: Browser, weights: Path, call_job: RunJob
) -> None:
    names = [f"Species {number:02d}" for number in range(12)]
    for number, name in enumerate(names):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for index in range(5):
            image = draw(CLASSES[number % 4], 90, 80, np.random.default_rng([number, index]))
            image.save(tmp_path / "raw" / name / f"{index}.png")
    settings = PrepareSettings(preprocessing=Preprocessing(side_px=SMALL_PX))
    classes = ClassSet.of(names)
    planned = plan_dataset([tmp_path / "raw"], settings, map_sequentially, classes=classes)
    write_dataset(planned, tmp_path / "set", map_sequentially)
    done = call_job("review", "--data", "set", "--weights", weights, "--json")
    assert done.code == 0, done.err
    page = browser.new_context(accept_downloads=True).new_page()
    page.goto((tmp_path / "review.html").as_uri())
    page.locator("#kind").select_option("suspect")
    why = page.locator("#why").inner_text()
    choices = page.locator("#choices button").all_inner_texts()
    assert len(choices) == 11 and choices[1].removeprefix("1 ") in why.split("looks like")[1]
    page.keyboard.press("/")
    page.keyboard.type("species 99")
    page.keyboard.press("Enter")
    assert "no class of this name" in page.locator("#notice").inner_text()
    page.locator("#find").fill("")
    page.keyboard.type("species 11")
    first = current(page)
    page.keyboard.press("Enter")
    page.keyboard.press("1")
    assert num_decided(page) == 2
    # What was chosen last has a key from now on.
    chosen = [text.split(" ", 1)[1] for text in page.locator("#choices button").all_inner_texts()]
    assert "Species 11" in chosen[1:4]
    with page.expect_download() as download:
        page.locator("#export").click()
    lines = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert {line["md5"]: line["class_name"] for line in lines}[first] == "Species 11"
