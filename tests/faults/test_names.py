"""Hostile names of runs, studies, models, classes and files, in the terminal and in the pages."""

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import Browser
from rich.console import Console

from drone.curation import review
from drone.curation.audit_page import write_audit
from drone.data.dataset import Dataset
from drone.data.prepare.plan import PrepareSettings, map_sequentially, plan_dataset
from drone.data.prepare.write import write_dataset
from drone.errors import ConfigError
from drone.evaluation import gate
from drone.evaluation import report as evaluation_report
from drone.evaluation.metrics import Predictions, score
from drone.evaluation.none_of_these import score_known
from drone.labels import ClassSet
from drone.names import check_folder_name, check_model_name, check_name, file_name, printable
from drone.search import report as study_report
from drone.serving.preprocess import Preprocessing
from drone.synth.drawing import draw
from ray_jobs import console
from tests.browser import chromium
from tests.conftest import ROOT, RunJob
from tests.evaluation.made_predictions import images_of
from tests.faults.tracked_model import TrackedModel, call, stored, tracked
from tests.jobs.test_command_line import fails

__all__ = ["call", "stored", "tracked"]

NOT_UTF8 = os.fsdecode(b"caf\xe9.png")

MARKUP = ["[/x]", "[old]", "[bold]x", "[link=file:///]x[/link]", ":bomb:", "[red]"]

CONTROL = {
    "a\nerror: forged": r"a\nerror: forged",
    "a\r100 % done": r"a\r100 % done",
    "\x1b[2J\x1b]0;title\x07": r"\x1b[2J\x1b]0;title\x07",
    "\x9b2J": r"\x9b2J",
    "a\u2028b\x85c": r"a\u2028b\x85c",
    "\u202egnp.exe": r"\u202egnp.exe",
    NOT_UTF8: r"caf\udce9.png",
}

SCRIPTS = [
    "<script>hit()</script>",
    "</script><script>hit()</script>",
    "\"'><img src=x onerror=hit()>",
    "<!--<script>",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{$ $x$",
    "javascript:hit()",
    "&lt;b&gt;",
]


@pytest.mark.parametrize(("name", "shown"), CONTROL.items())
def test_control_characters_are_printed_as_escapes(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert printable("Flying Birds é 🛸") == "Flying Birds é 🛸"


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a terminal of 200 columns gets."""
    output = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(console.console, "_file", output)
        patch.setattr(console.console, "_width", 200)
        yield output


@pytest.mark.parametrize("name", [*MARKUP, *CONTROL, *SCRIPTS, "n" * 300, "🛸"])
def test_every_way_to_the_terminal_shows_a_name_as_it_is(screen: io.StringIO, name: str) -> None:
    shown = printable(name)[:150]
    ways = [
        lambda: console.show(f"{name} is here"),
        lambda: console.warn(f"{name} is here"),
        lambda: console.table(name, ["a"], []),
        lambda: console.table("t", [name], []),
        lambda: console.table("t", ["a", "b"], [[name, 1.0]]),
        lambda: list(console.ConsoleDisplay().track(range(2), name, 2)),
    ]
    for way in ways[:-1]:
        screen.seek(0)
        screen.truncate()
        way()
        # Tables break long titles and cells.
        text = re.sub(r"[│┃\s]+", "", screen.getvalue())
        assert re.sub(r"\s+", "", shown)[:100] in text
        assert not set(screen.getvalue()) & set("\x1b\x07\r\x9b\u2028\u202e\udce9")
    ways[-1]()


def test_no_console_reads_markup() -> None:
    """The fault that cannot come back: a console that is made with markup."""
    assert console.console.render_str("[b]:bomb: 1[/x]").plain == "[b]:bomb: 1[/x]"
    for file in (ROOT / "ray_jobs").glob("*.py"):
        for made in re.findall(r"\bConsole\((.*?)\)", file.read_text(), re.DOTALL):
            assert "markup=False" in made and "emoji=False" in made, file
    assert Console().render_str(":bomb:").plain != ":bomb:"  # What it would be.


@pytest.mark.parametrize("name", ["", "  ", "n" * 300, "é" * 150, "-flag", *CONTROL])
def test_what_is_no_name(name: str) -> None:
    for check in (check_name, check_folder_name, check_model_name):
        with pytest.raises(ConfigError, match="--name is ") as raised:
            check(name, "--name")
        assert str(raised.value).isprintable() and len(str(raised.value)) < 500


@pytest.mark.parametrize("name", ["../x", "/etc/x", "..", ".", "a/b", ".hidden", "a\\b"])
def test_what_cannot_be_a_folder_or_a_model(name: str) -> None:
    check_name(name, "--name")
    for check in (check_folder_name, check_model_name):
        with pytest.raises(ConfigError, match="--name is "):
            check(name, "--name")


def test_names_that_are_fine() -> None:
    for name in ("finetune-s0", "my run, 2nd", "día 🛸", "o'hara", *SCRIPTS[2:3], "[/x]"):
        check_name(name, "--name")


@pytest.mark.parametrize("name", ["../../x", "/abs", "..", "", "a\nb", "[/x]", "n" * 300, "é/."])
def test_a_run_name_as_a_folder(name: str) -> None:
    made = file_name(name)
    assert "/" not in made and not made.startswith((".", "-")) and len(made.encode()) <= 80
    assert (Path("reports") / f"{made}-1234").parent == Path("reports")


def test_a_name_in_another_script_as_part_of_a_file_name(tmp_path: Path) -> None:
    assert file_name("無人機" * 40) == "無人機" * 8 + "無人"  # 78 bytes; one more letter has three.
    (tmp_path / f"{file_name('🛸無' * 100)}_{'0' * 64}.jpg").touch()


def test_the_jobs_refuse_names(call_job: RunJob, dataset: Dataset, tmp_path: Path) -> None:
    data = ["--data", dataset.folder, "--weights", "none"]
    for name in ("", "../../x", "a/b", "..", "n" * 300, "a\nb", "\udcff"):
        fails(call_job("tune", *data, "--name", name), 2, "--name is ")
    for name in ("", "n" * 300, "a\x1b[2J", "\udcff"):
        done = call_job("train", "smoke", *data, "--name", name)
        fails(done, 2, "--name is ")
        assert "\x1b" not in done.err
        fails(call_job("train", "smoke", *data, "--experiment", name), 2, "--experiment is ")
        fails(call_job("promote", "--run", "x", "--name", name), 2, "--name is ")
        fails(call_job("tune", *data, "--model-name", name), 2, "--model-name is ")
    for name in ("a/b", "a@b", "a:b", ".."):
        fails(call_job("promote", "--rollback", "--name", name), 2, "--name is ")
    # With = since a flag that starts with a dash is no value.
    fails(call_job("train", "smoke", *data, "--name=-x"), 2, "--name is '-x'")
    assert not (tmp_path / "studies").exists()


@pytest.mark.parametrize("name", [*MARKUP[:1], *CONTROL, *SCRIPTS[:1], "n" * 300, "../x", "a'\"b"])
def test_names_that_nothing_has(call: RunJob, name: str) -> None:
    for job in (
        ["evaluate", "--run", name],
        ["serve", "--model", f"models:/{name}@champion"],
        ["export", "--out", "out", "--model", name],
        ["promote", "--why", name],
        ["tune", "--resume", name],
        ["train", "--resume", name],
        ["prepare", "--raw", name, "--out", "set"],
        ["train", "smoke", "--data", name],
        ["train", name, "--data", "x"],
        ["review", "--data", name],
        ["serve", "--onnx", name],
    ):
        done = call(*job)
        assert done.code in (1, 2) and "Traceback" not in done.err, done.err
        assert "This is a bug" not in done.err, done.err
        assert len(done.err.splitlines()) == 1, done.err
        assert done.err.strip().replace("\n", "").isprintable(), repr(done.err)


def test_flags_with_control_characters(call_job: RunJob) -> None:
    for args in (
        ["--\x1b[2Jx"],
        ["--data", "x", "--epochs", "\x1b[2J"],
        ["--data", "\x07", "--no"],
    ):
        done = call_job("train", "smoke", *args)
        assert done.code == 2 and not {"\x1b", "\x07"} & set(done.err + done.out)


def test_a_run_that_was_renamed_outside_of_its_folder(tracked: TrackedModel, call: RunJob) -> None:
    from mlflow.tracking import MlflowClient

    MlflowClient().update_run(tracked.run_id, name="../../[/x]<script>")
    done = call("evaluate", "--run", tracked.run_id, "--out", "reports", "--json")
    MlflowClient().update_run(tracked.run_id, name="linear")
    assert done.code == 0, done.err
    file = Path(done.result["report"])
    assert file.is_relative_to(tracked.folder / "reports")
    assert "<script>" not in file.read_text().replace("</style>", "")


def test_a_folder_of_hostile_files(tracked: TrackedModel, call: RunJob, dataset: Dataset) -> None:
    folder = tracked.folder / ("[old] 🛸 " + "n" * 200)
    (folder / dataset.classes[0]).mkdir(parents=True)
    names = [*MARKUP[1:3], *CONTROL, *SCRIPTS, "n" * 200]
    for number, name in enumerate(names):
        file = folder / dataset.classes[0] / f"{name.replace('/', '_')}.png"
        draw(dataset.classes[0], 90, 80, np.random.default_rng([5, number])).save(file)
    (folder / dataset.classes[0] / "[/x] \n.png".replace("/", "_")).write_text("no image")
    done = call("evaluate", "--run", "linear", "--images", folder, "--json")
    assert done.code == 0, done.err
    assert not set(done.err) & set("\x1b\x07\r\x9b\u2028")
    table = pd.read_csv(Path(done.result["report"]).parent / "predictions.csv")
    assert len(table) == len(names)


def test_markdown_shows_names_as_they_are() -> None:
    document = {
        "name": "m",
        "version": "1",
        "candidate": "run <b>|x|\n# forged",
        "champion": None,
        "when": "now",
        "passed": True,
        "rules": [{"name": "recall", "passed": True, "figures": "a | b\n| forged | pass |"}],
    }
    lines = gate.markdown(document).splitlines()
    assert len(lines) == 8 - 1
    assert lines[-1].count("|") - lines[-1].count("\\|") == 4
    assert "<b>" not in "\n".join(lines)


# The pages, with names that would run a script if they were not escaped.


@pytest.fixture(scope="module")
def hostile_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, list[str]]:
    """A data set with its audit page, whose classes and files have hostile names."""
    folder = tmp_path_factory.mktemp("hostile")
    classes = tuple(name.replace("/", "") for name in (*SCRIPTS[:3], SCRIPTS[4]))
    for number, name in enumerate(classes):
        (folder / "raw" / name).mkdir(parents=True)
        for index in range(8):
            file = f"{SCRIPTS[index].replace('/', '')}.png"
            image = draw("Flying Birds", 90, 80, np.random.default_rng([number, index]))
            image.save(folder / "raw" / name / file)
    (folder / "raw" / classes[0] / "broken<script>hit()<script>.png").write_text("text")
    copied = (folder / "raw" / classes[0] / "javascript:hit().png").read_bytes()
    (folder / "raw" / classes[1] / "copy.png").write_bytes(copied)
    settings = PrepareSettings(preprocessing=Preprocessing(side_px=64))
    planned = plan_dataset(
        [folder / "raw"], settings, map_sequentially, classes=ClassSet.of(classes)
    )
    out = folder / "<img src=x onerror=hit()>"
    dataset, _ = write_dataset(planned, out, map_sequentially, write_audit=write_audit)
    return dataset, list(classes)


@pytest.fixture(scope="module")
def pages(
    hostile_set: tuple[Dataset, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """All pages that are written, by name."""
    dataset, classes = hostile_set
    folder = tmp_path_factory.mktemp("pages")
    suspects = dataset.manifest[dataset.manifest["kept"]].head(6)[["md5"]]
    suspects = suspects.assign(suggested=classes[1], confidence=0.9, evidence="/w==")
    items = review.build_items(dataset.manifest, suspects, ())
    facts = {name: name for name in (*SCRIPTS, "folder")}
    load = review.image_loader(dataset)
    advice = review.Advice([SCRIPTS[0]], "data:,")
    review.write_page(folder / "review.html", dataset, items, load, facts, advice)
    count = 8 * len(classes)
    labels_N = np.repeat(np.arange(len(classes)), 8)
    probs_NK = np.full((count, len(classes)), 0.1, np.float32)
    probs_NK[:, 1] = 0.7
    paths = tuple(f"{classes[0]}/{SCRIPTS[number % 8]}" for number in range(count))
    known_N = np.ones(count, np.float32)
    predictions = Predictions(paths, labels_N, probs_NK, ClassSet.of(classes), known_N)
    known = score_known(known_N, 0.5, np.float32([0.1]), [SCRIPTS[2]])
    header = evaluation_report.ReportHeader(
        SCRIPTS[1] + NOT_UTF8, facts, pd.DataFrame(), best_epoch=None, known=known
    )
    pixels = np.zeros((count, 32, 32, 3), np.uint8)
    scores = score(predictions)
    evaluation_report.write(folder / "e", predictions, scores, header, images_of(pixels))
    trials = {"trial": [0], "score": [0.5], "state": ["finished\"'><img src=x onerror=hit()>"]}
    study = study_report.StudyReport(
        title=SCRIPTS[1],
        facts=facts,
        winner=SCRIPTS[0],
        advice=[SCRIPTS[1]],
        trials=pd.DataFrame({**trials, SCRIPTS[0]: [SCRIPTS[2]], "reason": [SCRIPTS[1]]}),
        confirmed=pd.DataFrame(),
        objective=SCRIPTS[0],
        sentences={SCRIPTS[1]: SCRIPTS[2]},
        figures=[],
    )
    return {
        "review": folder / "review.html",
        "report": folder / "e" / "report.html",
        "study": study_report.write(folder / "s", study),
        "audit": dataset.folder / "audit.html",
    }


@pytest.mark.parametrize("name", ["review", "report", "study", "audit"])
def test_names_are_escaped_in_the_pages(pages: dict[str, Path], name: str) -> None:
    html = pages[name].read_text("utf-8")
    own = (ROOT / "drone").rglob("*.html")
    allowed = max(file.read_text().count("<script") for file in own)
    assert html.count("<script") <= allowed
    assert "<script>hit" not in html and "<img src=x" not in html
    assert "&lt;script&gt;hit()" in html
    if name == "review":
        data = json.loads(html.split('id="data">')[1].split("</script>")[0])
        assert data["classes"][0] == SCRIPTS[0].replace("/", "")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.mark.slow
def test_no_page_runs_a_script_of_a_name(pages: dict[str, Path], browser: Browser) -> None:
    hits: list[str] = []
    for name, file in pages.items():
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
        page.expose_function("hit", lambda name=name: hits.append(name))
        page.goto(file.as_uri())
        page.wait_for_load_state("networkidle")
        if name == "review":
            for key in ("2", "x", "g", "Enter", " ", "u", "ArrowRight", "g"):
                page.keyboard.press(key)
            page.get_by_label("Your name").fill(SCRIPTS[2])
        assert page.evaluate("document.images.length") > 0 or name == "study"
        assert page.locator("script:not([id])").count() == (1 if name == "review" else 0)
        assert page.locator("img[onerror], [onclick*=hit]").count() == 0
        page.wait_for_timeout(100)
        page.close()
        assert not errors
    assert not hits
    # The check itself can fail.
    page = browser.new_page()
    page.expose_function("hit", lambda: hits.append("control"))
    page.set_content("<img src=x onerror=hit()>")
    page.wait_for_timeout(500)
    page.close()
    assert hits == ["control"]
