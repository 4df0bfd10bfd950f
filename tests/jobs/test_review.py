"""The review of a data set, in a real browser, from its doubtful pictures to the next version."""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from playwright.sync_api import Browser, Page
from torchvision.models import mobilenet_v2

from drone.data.clean import ACROSS
from drone.data.dataset import open_dataset
from drone.data.prepare import PrepareSettings, map_here, plan
from drone.data.writing import apply
from drone.labels import CLASSES
from drone.serving.preprocess import Preprocessing
from tests.browser import chromium
from tests.conftest import SMALL_PX, MadeUp, RunJob


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random ones: what the page shows is of no account here, only that it works."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(mobilenet_v2().state_dict(), file)
    return file


@pytest.fixture
def reviewed(made_up: MadeUp, tmp_path: Path, weights: Path, call_job: RunJob) -> Path:
    """A folder with a data set in `set` and its page."""
    settings = PrepareSettings(preprocessing=Preprocessing(side_px=SMALL_PX))
    apply(plan([made_up.folder], settings, map_here), tmp_path / "set", map_here)
    done = call_job("review", "--data", "set", "--weights", weights, "--json")
    assert done.code == 0, done.err
    (tmp_path / "said.json").write_text(done.out.splitlines()[-1])
    return tmp_path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


def now(page: Page) -> str:
    """The md5 of the picture that is shown."""
    return str(page.locator("#picture").get_attribute("data-md5"))


def embedded(page: Path) -> str:
    """The JSON that the page is made of."""
    return page.read_text().split('id="data">')[1].split("</script>")[0]


def decided(page: Page) -> int:
    return int(page.locator("#count").inner_text().split()[0])


def test_a_person_decides_by_keys_and_clicks(
    reviewed: Path,
    browser: Browser,
    made_up: MadeUp,
    weights: Path,
    call_job: RunJob,
    run_job: RunJob,
) -> None:
    said = json.loads((reviewed / "said.json").read_text())
    manifest = open_dataset(reviewed / "set").manifest
    context = browser.new_context(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    faults: list[str] = []
    page = context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto((reviewed / "review.html").as_uri())

    # Copies in several classes come first, each with all its places.
    across = set(manifest.loc[manifest["reason"] == ACROSS, "md5"])
    assert page.locator("#count").inner_text() == f"0 of {said['shown']} decided"
    first = now(page)
    assert first in across
    for path in manifest.loc[manifest["md5"] == first, "path"]:
        assert path in page.locator("#why").inner_text()
    assert page.evaluate("document.getElementById('picture').naturalWidth") > 0

    page.keyboard.press("4")  # Relabel; the next one comes by itself.
    second = now(page)
    assert second != first and decided(page) == 1
    page.keyboard.press("x")
    third = now(page)
    page.keyboard.press("Space")
    assert decided(page) == 3
    fourth = now(page)
    page.keyboard.press("x")
    page.keyboard.press("u")
    assert now(page) == fourth and decided(page) == 3
    page.keyboard.press("ArrowLeft")
    assert now(page) == third
    page.get_by_role("button", name="x drop").click()  # Changed one's mind, by a click.
    assert decided(page) == 3

    # A reload keeps all of it, and goes on with what is open.
    page.get_by_label("Your name").fill("Ada")
    page.reload()
    assert decided(page) == 3 and now(page) == fourth
    assert page.get_by_label("Your name").input_value() == "Ada"

    # In the grid: the keys act on the tile that was clicked.
    page.keyboard.press("g")
    tiles = page.locator(".tile")
    assert tiles.count() == said["shown"]
    suspect = page.locator(".tile", has_text="→").nth(0)
    chosen = suspect.get_attribute("data-md5")
    given = manifest.loc[manifest["md5"] == chosen, "class_name"].iloc[0]
    other = next(name for name in CLASSES if name != given)
    suspect.click()
    page.keyboard.press(str(CLASSES.index(other) + 1))
    assert f"now {other}" in page.locator(f".tile[data-md5='{chosen}']").inner_text()

    # Filters: one class, and only what is undecided.
    page.locator("#class").select_option(CLASSES[1])
    shown = page.evaluate("[...document.querySelectorAll('.tile')].map((one) => one.dataset.md5)")
    classes = manifest.drop_duplicates("md5").set_index("md5")["class_name"]
    assert shown and set(classes[shown]) == {CLASSES[1]}
    page.locator("#class").select_option("")
    page.get_by_label("only undecided").check()
    assert tiles.count() == said["shown"] - 4
    assert not faults and all(url.startswith(("file:", "data:", "blob:")) for url in asked)

    with page.expect_download() as download:
        page.get_by_role("button", name="Export decisions").click()
    download.value.save_as(reviewed / "decisions.jsonl")
    context.close()
    lines = [json.loads(line) for line in (reviewed / "decisions.jsonl").read_text().splitlines()]
    told = {line["md5"]: (line["action"], line["class_name"], line["by"]) for line in lines}
    assert told == {
        first: ("relabel", CLASSES[3], "Ada"),
        second: ("drop", "", "Ada"),
        third: ("drop", "", "Ada"),
        chosen: ("relabel", other, "Ada"),
    }

    words = ["--raw", made_up.folder, "--out", "set", "--preprocessing.side-px", SMALL_PX]
    taken = run_job("prepare", *words, "--decisions", "decisions.jsonl", "--json")
    assert taken.code == 0 and "4 decisions, 4 of them new" in taken.err
    after = open_dataset(reviewed / "set").manifest
    kept = after[after["kept"]].set_index("md5")["class_name"]
    assert kept[first] == CLASSES[3] and kept[chosen] == other
    assert second not in kept.index and third not in kept.index
    # What was decided is not asked again.
    again = call_job("review", "--data", "set", "--weights", weights, "--json")
    assert again.code == 0, again.err
    data = json.loads(embedded(reviewed / "review.html"))
    assert not {item["md5"] for item in data["items"]} & set(told)


def test_it_needs_no_browser_to_say_what_it_found(reviewed: Path) -> None:
    said = json.loads((reviewed / "said.json").read_text())
    assert 0 <= said["ceiling"]["low"] <= said["ceiling"]["high"] <= 1
    assert set(said["wrong"]) == set(CLASSES)
    suspects = pd.read_csv(reviewed / "review.csv")
    assert len(suspects) == said["suspects"]
    assert (suspects["given"] != suspects["suggested"]).all()
    assert suspects["quality"].is_monotonic_increasing
    # A name cannot end the script that holds it.
    data = embedded(reviewed / "review.html")
    assert "<" not in data and json.loads(data)["classes"] == list(CLASSES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "nowhere"], "nowhere is not a prepared data set"),
        (["--data", "x", "--weights", "none"], "--weights none sees nothing"),
        (["--data", "x", "--out", "page.txt"], "must end in .html"),
        (["--data", "x", "--out", "gone/page.html"], "There is no folder"),
        (["--data", "x", "--suspects", "-1"], "must be 0 or more"),
    ],
)
def test_wrong_usage(call_job: RunJob, words: list[str], message: str) -> None:
    done = call_job("review", *words)
    assert done.code in (1, 2) and message in done.err and "Traceback" not in done.err
