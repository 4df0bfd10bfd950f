"""A model that is wrong or changes, what of a page is served, and what a log shows."""

import asyncio
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from drone.errors import RunError
from drone.labels import CLASSES, ClassSet
from drone.serving import predictor as predicting
from drone.serving.api import Api, ApiSettings, loggable
from drone.serving.http import HttpApp, HttpSettings
from drone.serving.predictor import Predictor, class_metadata
from drone.serving.preprocess import Preprocessing
from tests.conftest import RunJob
from tests.jobs.processes import wait_for
from tests.linear_model import write_linear
from tests.serving import hostile
from tests.serving.server import served
from tests.serving.test_http import post_to_app

pytestmark = pytest.mark.slow

JPEG = hostile.cases()["JPEG"][0]
GOOD = {**class_metadata(CLASSES), "preprocessing": Preprocessing(side_px=16).to_json()}


def write_model(
    target: Path, metadata: dict[str, str], *, scale: float = 1e-4, num_classes: int = 4
) -> Path:
    """A linear model of 16 x 16 pixels whose weights all are `scale`."""
    return write_linear(target, 16, np.full((16 * 16 * 3, num_classes), scale), metadata)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"classes": "{"}, "The metadata of .* is damaged"),
        ({"classes": "[]"}, r"classes are \[\], called .*; they must be names"),
        ({"classes": "[1, 2, 3, 4]"}, r"classes are \[1, 2, 3, 4\], called .*; they must be names"),
        ({"classes": '["a", "a", "b", "c"]'}, "each must differ"),
        ({"classes": '["a", "b"]'}, r"roles are \['bird', .*\] for the classes \['a', 'b'\]"),
        ({"roles": '["bird", "drone", "drone", "plane"]'}, "'plane'.* for the classes"),
        (
            class_metadata(ClassSet.of(("a", "b"))),
            "returns 4 probabilities, but its metadata names 2 classes",
        ),
        ({"preprocessing": "[]"}, "The metadata of .* is damaged"),
        ({"preprocessing": '{"side_px": 0}'}, "side_px is 0; it must be at least 1"),
        ({"preprocessing": '{"side_px": "16"}'}, "The metadata of .* is damaged"),
        ({"preprocessing": '{"side_px": 32}'}, "gives no prediction"),
        ({"preprocessing": '{"colour": 1}'}, "The metadata of .* is damaged"),
        ({"temperature": "0"}, "temperature is 0.0; it must be above 0"),
        ({"temperature": "nan"}, "temperature is nan"),
        ({"temperature": "warm"}, "The metadata of .* is damaged"),
        ({"unsure_below": "2"}, "unsure_below is 2.0; it must be 0 to 1"),
        ({"sides_px": "[448, 224]"}, r"sides_px are \[448, 224\]; they must ascend"),
        ({"sides_px": '["224"]'}, "they must be whole numbers"),
    ],
)
def test_wrong_metadata_is_found_at_the_start(
    metadata: dict[str, str], message: str, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "wrong.onnx", GOOD | metadata)
    with pytest.raises(RunError, match=message) as raised:
        Predictor(model, threads=1).start()
    assert "wrong.onnx" in str(raised.value) and "Export the model again" in str(raised.value)


def test_a_model_that_predicts_nonsense_is_not_served(call_job: RunJob, tmp_path: Path) -> None:
    write_model(tmp_path / "nan.onnx", GOOD, scale=np.nan)
    done = call_job("serve", "--onnx", "nan.onnx", "--port", 0)
    assert done.code == 1 and "nan.onnx predicts values that are not finite" in done.err
    assert "Traceback" not in done.err


def test_a_model_that_takes_too_long_is_not_served(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "_MAX_TRIAL_S", 0.0)

    class Session:
        def run(self, _: None, inputs: dict, options: object) -> list:
            while not options.terminate:  # As onnxruntime does between two nodes.
                time.sleep(0.01)
            raise RuntimeError("Exiting due to terminate flag being set to true.")

    predictor = Predictor(exported, threads=1)
    predictor.info  # noqa: B018
    monkeypatch.setattr(predictor, "_session", Session())
    with pytest.raises(RunError, match="gives no prediction: Exiting due to terminate flag"):
        predictor.start()


def test_nan_never_goes_out_as_json(tmp_path: Path) -> None:
    # Zero times infinity: finite for no image, and loaded without a trial.
    model = write_model(tmp_path / "nan.onnx", GOOD, scale=np.inf)
    sent = post_to_app(HttpApp(Api(Predictor(model), ApiSettings()), HttpSettings()), JPEG)
    assert sent[0]["status"] == 500 and b"NaN" not in sent[1]["body"]
    assert json.loads(sent[1]["body"])["error"]["problem"] == "internal"


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_the_page_gets_the_bytes_that_predict(linear: Path, tmp_path: Path, change: str) -> None:
    model, loaded = tmp_path / "model.onnx", linear.read_bytes()
    shutil.copy(linear, model)
    (tmp_path / "page").mkdir()
    with served(tmp_path, "--onnx", model, "--page", tmp_path / "page") as server:
        _, first, body = server.request("GET", "/model/model.onnx")
        assert body == loaded and int(first["content-length"]) == len(loaded)
        model.unlink()
        if change == "replaced":
            model.write_bytes(b"another model")
        status, headers, body = server.request("GET", "/model/model.onnx")
        assert (status, body, headers["etag"]) == (200, loaded, first["etag"])
        assert server.request("HEAD", "/model/model.onnx")[2] == b""
        assert server.request("POST", "/predict", JPEG)[0] == 200


def test_files_whose_names_begin_with_a_dot_are_not_served(linear: Path, tmp_path: Path) -> None:
    page = tmp_path / "page"
    (page / ".git").mkdir(parents=True)
    (page / ".git" / "config").write_text("secret")
    (page / ".env").write_text("secret")
    (page / "open.txt").symlink_to(page / ".env")
    (page / "folder").mkdir()
    (page / "folder" / ".htpasswd").write_text("secret")
    (page / "app.js").write_text("public")
    app = HttpApp(Api(Predictor(linear), ApiSettings()), HttpSettings(), page)

    def get(path: str) -> tuple[int, bytes]:
        sent: list[dict] = []

        async def send(message: dict) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        asyncio.run(app({**scope, "asgi": {"spec_version": "2.4"}}, None, send))
        return sent[0]["status"], sent[1]["body"]

    for path in ("/.env", "/.git/config", "/.git/", "/folder/.htpasswd", "/open.txt", "/x/../.env"):
        status, body = get(path)
        assert status == 404 and b"secret" not in body
    assert get("/app.js") == (200, b"public")


def test_a_path_cannot_forge_lines_of_the_log(linear: Path, tmp_path: Path) -> None:
    with served(tmp_path, "--onnx", linear) as server:
        path = "/a%0d%0a2026-01-01%20forged%20%1b%5b31m%e2%80%a8" + "b" * 5000
        assert server.request("GET", path)[0] == 404
        wait_for(lambda: "forged" in server.log.read_text())
        [line] = [line for line in server.log.read_bytes().split(b"\n") if b"forged" in line]
        assert b"GET /a\\r\\n2026-01-01 forged \\x1b[31m\\u2028bbb" in line
        assert line.isascii() and b"\r" not in line and b"\x1b" not in line and len(line) < 320


def test_what_is_logged_is_cut() -> None:
    assert loggable("GET /health") == "GET /health"
    assert len(loggable("é" * 5000)) == len(loggable("a" * 5000)) == 200
