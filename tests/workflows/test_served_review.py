"""The review of served images: what comes first, and what is not shown."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drone.curation import review as page
from drone.errors import ConfigError
from drone.labels import CLASSES, NONE, ClassSet
from drone.serving.keeping import KeepSettings, select, write_pair
from drone.serving.predictor import class_metadata
from drone.serving.preprocess import Preprocessing
from drone.storage.kept_images import KeptImages
from drone.workflows.requests import ReviewRequest
from drone.workflows.served_review import ServedReview, write_served_page
from tests.conftest import RunJob
from tests.linear_model import write_linear
from tests.serving.lambda_events import file_of

SIDE_PX = 32
RED, GREEN, BLUE, CYAN = (220, 0, 0), (0, 220, 0), (0, 0, 220), (0, 150, 150)


def model(target: Path, class_of_channel: Sequence[int], classes: Sequence[str] = CLASSES) -> Path:
    """A model that takes an image for the class of its brightest channel."""
    weights_PK = np.zeros((SIDE_PX * SIDE_PX * 3, len(classes)))
    for channel, index in enumerate(class_of_channel):
        weights_PK[channel::3, index] = 10 / (128 * SIDE_PX**2)
    preprocessing = Preprocessing(side_px=SIDE_PX).to_json()
    metadata = {**class_metadata(ClassSet.of(classes)), "preprocessing": preprocessing}
    return write_linear(target, SIDE_PX, weights_PK, metadata)


def scene(colour: tuple[int, int, int], seed: int, shift: int = 0) -> bytes:
    light = np.random.default_rng(seed).integers(120, 256, (7, 7), np.uint8)
    grey = np.asarray(Image.fromarray(light).resize((120, 120)).crop((shift, 0, 110 + shift, 110)))
    pixels = (grey[:, :, None] * np.float32(colour) / 255).astype(np.uint8)
    return file_of(Image.fromarray(pixels), "PNG")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two models, and a store with six frames of a clip among other images."""
    monkeypatch.chdir(tmp_path)
    model(tmp_path / "champion.onnx", (0, 1, 2))
    model(tmp_path / "candidate.onnx", (3, 1, 2))
    when = datetime.datetime(2026, 11, 28, tzinfo=datetime.UTC)
    clip = [scene(GREEN, 1, shift) for shift in range(6)]
    images = [*clip, scene(BLUE, 2), scene(RED, 3), scene(CYAN, 4), b"\x89PNG damaged"]
    for image in images:
        answer = {"label": NONE, "unsure": True}
        kept = select(KeepSettings(), image, answer, dict.fromkeys(("name", "version"), "x"), when)
        assert kept
        write_pair(KeptImages("store"), kept)
    return tmp_path


def reviewed(**options: object) -> tuple[ServedReview, list[page.Item]]:
    request = ReviewRequest(served="store", onnx=Path("champion.onnx"), weights="none", **options)  # type: ignore[arg-type]
    result = write_served_page(request)
    data = Path("review.html").read_text().split('id="data">')[1].split("</script>")[0]
    return result, json.loads(data)["items"]


def test_doubtful_images_come_first_and_a_clip_comes_once(folder: Path) -> None:
    result, items = reviewed()
    assert result.num_shown == 4 and result.num_images == 10
    assert result.left_out == {"no longer readable": 1, "near duplicates of others": 5}
    # Green and blue in equal parts: the model cannot tell.
    assert "x x answered none of these on 2026-11-28" in items[0]["why"]
    assert items[0]["given"] in (CLASSES[1], CLASSES[2]) and "50%" in items[0]["why"]
    clip = next(item for item in items if item["twins"])
    assert clip["given"] == CLASSES[1] and len(clip["twins"]) == 5
    assert all(set(item["kinds"]) == {"unsure", "rejected"} for item in items)
    assert result.prepare_again.endswith("--served store --decisions DECISIONS.jsonl")


def test_what_a_candidate_answers_otherwise_is_as_good_as_unsure(folder: Path) -> None:
    _, items = reviewed(candidate="candidate.onnx", max_suspects=2)
    disputed, unsure = sorted(items, key=lambda item: "disputed" not in item["kinds"])
    assert (disputed["given"], disputed["suggested"]) == (CLASSES[0], CLASSES[3])
    assert "The candidate says Winged Drones" in disputed["why"]
    assert unsure["suggested"] == "" and "50%" in unsure["why"]


def test_a_candidate_of_other_classes_is_refused(folder: Path) -> None:
    model(folder / "other.onnx", (0, 1, 1), ("a", "b"))
    with pytest.raises(ConfigError, match=r"other\.onnx has the classes a, b, and the model"):
        reviewed(candidate="other.onnx")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Name what to review: --data DATASET or --served STORE"),
        (["--served", "x"], "Name what ranks the served images"),
        (["--data", "x", "--candidate", "y"], "--candidate need --served"),
        (["--served", "gone", "--onnx", "gone.onnx"], "gone holds no served images"),
    ],
)
def test_wrong_usage(call_job: RunJob, args: list[str], message: str) -> None:
    done = call_job("review", *args)
    assert done.code in (1, 2) and "Traceback" not in done.err
    assert message in " ".join(done.err.replace("│", " ").split())
