"""The predict job as users run it, and its contact sheet in a real browser."""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page
from pyarrow import csv, parquet

from drone.files import locked
from drone.inference import contact_sheet
from drone.inference.rows import probability_column
from drone.labels import CLASSES, NONE
from drone.model.export import add_metadata
from drone.serving.predictor import Predictor
from tests.browser import chromium
from tests.conftest import ROOT, RunJob, job_environment
from tests.inference.conftest import mess, onnx, write_image
from tests.jobs.processes import started, wait_for

__all__ = ["mess", "onnx"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


def table(out: Path) -> dict[str, dict]:
    """Rows of the table by path."""
    rows = parquet.ParquetFile(out / "predictions.parquet").read().to_pylist()
    by_path = {row["path"]: row for row in rows}
    assert len(by_path) == len(rows)
    return by_path


def test_a_messy_folder_and_an_archive(call_job: RunJob, onnx: Path, mess: Path) -> None:
    out = mess.parent / "out"
    done = call_job(
        *("predict", "--onnx", onnx, "--images", "mess", "more.zip", "--out", out, "--json"),
        cwd=mess.parent,
    )
    assert done.code == 0, done.err
    rows = table(out)
    assert len(rows) == 14
    prediction = Predictor(onnx).predict((mess / "Möwe" / "größe.jpg").read_bytes())
    row = rows[f"{mess}/Möwe/größe.jpg"]
    assert row["label"] == prediction.label and row["unsure"] == prediction.unsure
    for name in CLASSES:
        assert row[probability_column(name)] == pytest.approx(prediction.probabilities[name])
    assert rows[f"{mess}/huge.png"]["reason"] == "too-large"
    assert "frame" not in row and "x" not in row
    in_csv = csv.read_csv(out / "predictions.csv")
    assert in_csv["path"].to_pylist() == list(rows)
    result = done.result
    assert result["num_images"] == result["num_new"] == 14
    assert sum(result["labels"].values()) == 8
    assert result["not_read"] == {
        **dict.fromkeys(("undecodable", "empty", "non-media"), 1),
        **dict.fromkeys(("too-large", "too-small", "unreadable"), 1),
    }
    assert done.err.count("not read: ") == 6


def test_the_same_command_adds_what_is_new(call_job: RunJob, onnx: Path, tmp_path: Path) -> None:
    args = ("predict", "--onnx", onnx, "--images", "images", "--out", "out", "--json")
    for number in range(3):
        write_image(tmp_path / "images" / f"{number}.png", number)
    assert call_job(*args).result["num_new"] == 3
    assert call_job(*args).result["num_new"] == 0
    (tmp_path / "images" / "0.png").unlink()
    write_image(tmp_path / "images" / "1.png", 7)
    write_image(tmp_path / "images" / "3.png", 3)
    again = call_job(*args).result
    assert (again["num_images"], again["num_new"]) == (3, 2)
    rows = table(tmp_path / "out")
    assert sorted(Path(path).name for path in rows) == ["1.png", "2.png", "3.png"]
    changed = Predictor(onnx).predict((tmp_path / "images" / "1.png").read_bytes())
    assert rows[f"{tmp_path}/images/1.png"]["known"] == pytest.approx(changed.known)


def test_out_may_be_among_the_images(call_job: RunJob, onnx: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "0.png")
    args = ("predict", "--onnx", onnx, "--images", ".", "--out", "out", "--sort", "copy", "--json")
    assert call_job(*args).result["num_images"] == 1
    again = call_job(*args).result
    assert (again["num_images"], again["num_new"]) == (1, 0)
    inside = call_job("predict", "--onnx", onnx, "--images", "out", "--out", "out")
    assert inside.code == 1 and "Choose another --out" in inside.err


def test_a_second_writer_is_refused(call_job: RunJob, onnx: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "0.png")
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out" / ".lock", "out"):
        done = call_job("predict", "--onnx", onnx, "--images", "images", "--out", "out")
    assert done.code == 1 and "out is being written by" in done.err


def test_class_folders(call_job: RunJob, onnx: Path, mess: Path) -> None:
    common = ("predict", "--onnx", onnx, "--out", "out")
    refused = call_job(*common, "--images", "more.zip", "--sort", "link", cwd=mess.parent)
    assert refused.code == 2 and "Use --sort copy" in refused.err
    for sort in ("link", "copy"):
        done = call_job(*common, "--images", "mess", "--sort", sort, cwd=mess.parent)
        assert done.code == 0, done.err
        files = [file for file in (mess.parent / "out" / "sorted").rglob("*") if file.is_file()]
        assert len(files) == 5 and all(file.is_symlink() == (sort == "link") for file in files)
        content = {file.read_bytes() for file in files}
        assert content == {(mess / name).read_bytes() for name in ("a.jpg", "b/a.jpg")} | {
            file.read_bytes() for file in (*mess.glob("b/*.png"), *mess.glob("M*/*"))
        } | {(mess / os.fsdecode(b"caf\xe9.png")).read_bytes()}


def test_errors_name_the_way_out(call_job: RunJob, onnx: Path, mess: Path) -> None:
    def error(*args: object) -> str:
        done = call_job("predict", *args, cwd=mess.parent)
        assert done.code in (1, 2) and "Traceback" not in done.err
        return " ".join(done.err.split())

    model = ("--onnx", onnx)
    assert "one of --model URI" in error("--images", "mess", "--out", "out")
    assert "does not exist" in error(*model, "--images", "nowhere", "--out", "out")
    assert "There is no file no.onnx" in error(
        "--onnx", "no.onnx", "--images", "mess", "--out", "out"
    )
    assert "which is a file" in error(*model, "--images", "mess", "--out", "more.zip")
    secret = "s3://key:secret@bucket/photos"
    said = error(*model, "--images", secret, "--out", "out")
    assert "holds credentials" in said and "secret@" not in said
    assert (
        call_job("predict", *model, "--images", "mess", "--out", "out", cwd=mess.parent).code == 0
    )
    said = error(*model, "--images", "more.zip", "--out", "out")
    assert "out/parts holds predictions with another --images" in said and "rm -r" in said
    other = mess.parent / "other.onnx"
    # The same model, but for a byte that decides nothing.
    other.write_bytes(onnx.read_bytes() + b"\x9a\x01\x00")
    said = error("--onnx", other, "--images", "mess", "--out", "out")
    assert "with another model" in said or "not a model" in said


def test_few_images_need_no_heavy_library(onnx: Path, mess: Path) -> None:
    code = (
        "import sys, runpy\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print([n for n in ('torch', 'ray', 'mlflow', 'pandas') if n in sys.modules])"
    )
    script = ROOT / "ray_jobs" / "predict.py"
    args = ["--onnx", onnx, "--images", mess / "a.jpg", "--out", mess.parent / "out"]
    program = f"import sys; sys.argv = {[str(script), *map(str, args)]!r}\n{code}"
    # The job's own way out ends the process before the last line; so it is kept from that.
    program = f"import os\nos._exit = sys_exit = lambda code: None\n{program}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=job_environment(),
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().splitlines()[-1] == "[]", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_continues(
    call_job: RunJob, onnx: Path, tmp_path: Path, number: int
) -> None:
    first = write_image(tmp_path / "images" / "0000.png")
    for copy in range(1, 6000):
        os.link(first, tmp_path / "images" / f"{copy:04}.png")
    args = ("predict", "--onnx", onnx, "--images", "images", "--out", "out")
    with started(tmp_path, *args) as job:
        wait_for(lambda: list((tmp_path / "out" / "parts").glob("*.parquet")))
        job.send_signal(number)
        code = job.wait(timeout=60)
    assert code == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert "Run the same command again to continue" in (tmp_path / "job.log").read_text()
    assert not (tmp_path / "out" / "predictions.parquet").exists()
    done = call_job(*args, "--json")
    assert done.code == 0 and 0 < done.result["num_new"] < 6000
    assert len(table(tmp_path / "out")) == 6000


@pytest.mark.slow
@pytest.mark.ray
def test_on_ray_the_rows_are_the_same(run_job: RunJob, onnx: Path, mess: Path) -> None:
    args = ("predict", "--onnx", onnx, "--images", "mess", "more.zip")
    here = run_job(*args, "--out", "here", cwd=mess.parent)
    on_ray = run_job(*args, "--out", "ray", "--ray-from", 0, cwd=mess.parent)
    assert here.code == on_ray.code == 0, on_ray.err
    rows = table(mess.parent / "ray")
    assert rows == table(mess.parent / "here") and list(rows) == list(table(mess.parent / "here"))


def tiles(page: Page) -> list[str]:
    return [str(figure.get_attribute("title")) for figure in page.locator("#grid figure").all()]


def test_the_contact_sheet(
    call_job: RunJob,
    onnx: Path,
    mess: Path,
    browser: Browser,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contact_sheet, "_PAGE_SIZE", 10)
    name = '<img src=x onerror="document.title=1">.png'
    for number in range(50):
        write_image(mess / "more" / f"{number}.png", number)
    write_image(mess / name, 60)
    assert (
        call_job("predict", "--onnx", onnx, "--images", mess, "--out", mess.parent / "out").code
        == 0
    )
    rows = table(mess.parent / "out")
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((mess.parent / "out" / "predictions.html").as_uri())

    def expected(label: str) -> list[str]:
        of_class = [row for row in rows.values() if row["label"] == label]
        return [row["path"] for row in sorted(of_class, key=lambda row: -row["confidence"])]

    label = max(CLASSES, key=lambda name: len(expected(name)))
    paths = expected(label)
    assert len(paths) > 10
    page.get_by_role("button", name=f"{label} {len(paths)}").click()
    page.locator("#grid figure").first.wait_for()
    assert tiles(page) == paths[:10]
    page.get_by_label("Next page").click()
    page.wait_for_function("document.querySelector('#grid figure')")
    assert tiles(page) == paths[10:20]
    page.get_by_label("Order").select_option("unsure")
    page.wait_for_function("document.querySelector('#grid figure')")
    assert tiles(page)[0] == paths[-1]
    # The image is drawn, with its own aspect ratio.
    size = page.locator("#grid img").first.evaluate("e => [e.naturalWidth, e.naturalHeight]")
    assert size[0] == 144 and 50 < size[1] < 144
    # What the answers rest on is drawn over each image once it is asked for.
    maps = page.locator("#grid heat-map")
    assert maps.count() == len(tiles(page)) and not maps.first.is_visible()
    page.get_by_label("show evidence map").check()
    assert maps.first.bounding_box() == page.locator("#grid img").first.bounding_box()
    evidence = Predictor(onnx).predict(Path(tiles(page)[0]).read_bytes(), evidence=True).evidence
    assert evidence is not None and maps.first.get_attribute("values") == evidence.encoded()
    limit = round(rows[paths[4]]["confidence"], 4)
    page.get_by_label("Order").select_option("surest")
    page.get_by_label("Confidence from").fill(str(limit))
    page.get_by_label("Confidence from").press("Enter")
    page.wait_for_function("document.querySelectorAll('#grid figure').length == 5")
    assert tiles(page) == paths[:5]
    assert page.get_by_label("only alarms").is_hidden()
    page.get_by_role("button", name="not read 6").click()
    page.wait_for_function("document.querySelectorAll('#grid figure').length == 6")
    assert "The file is empty." in page.locator("#grid").inner_text()
    assert page.get_by_role("button", name=f"{NONE} 0").is_disabled()
    assert page.title() == "Predictions" and errors == []
    (mess.parent / "out" / "predictions_pages").rename(mess.parent / "moved")
    page.reload()
    page.get_by_text("belongs beside this page").wait_for()
    page.close()


def test_the_contact_sheet_can_show_alarms_alone(
    call_job: RunJob, onnx: Path, mess: Path, browser: Browser
) -> None:
    for number in range(20):
        write_image(mess / f"{number}.png", number)
    predictor = Predictor(onnx)
    answers = {
        file: predictor.predict(file.read_bytes())
        for file in mess.glob("*.png")
        if file.stem.isdigit()
    }
    label = Counter(answer.label for answer in answers.values()).most_common(1)[0][0]
    drones = [answer.drone for answer in answers.values() if answer.label == label]
    alarming = mess.parent / "alarming.onnx"
    shutil.copy(onnx, alarming)
    add_metadata(alarming, {"alarm_above": repr(float(np.median(drones)))})
    out = mess.parent / "out"
    done = call_job("predict", "--onnx", alarming, "--images", mess, "--out", out, "--json")
    assert done.code == 0, done.err
    of_class = [row for row in table(out).values() if row["label"] == label]
    expected = {row["path"] for row in of_class if row["alarm"]}
    assert 0 < len(expected) < len(of_class)
    assert done.result["num_alarms"] == sum(bool(row["alarm"]) for row in table(out).values())
    page = browser.new_page()
    page.goto((out / "predictions.html").as_uri())
    page.get_by_role("button", name=f"{label} {len(of_class)}").click()
    page.locator("#grid figure").first.wait_for()
    assert len(tiles(page)) == len(of_class)
    page.get_by_label("only alarms").check()
    page.wait_for_function(f"document.querySelectorAll('#grid figure').length === {len(expected)}")
    assert set(tiles(page)) == expected
    page.close()
