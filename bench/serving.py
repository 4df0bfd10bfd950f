"""Answering over HTTP: ours against the original's way, in one run.

    python bench/serving.py                                (random weights, a drawn image)
    python bench/serving.py --onnx export/model.onnx --image image.jpg

The original's way: torch and torchvision in the handler, one image at a time, behind Python's
threading server. Ours: `serve.py` as typed. Each starts in a process of its own; the first answer
is timed from the start of the process, disks warm. Then so many clients ask, each again as soon as
it has its answer. Requests that are refused (503) are asked again and count as refused.
"""

import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import psutil
import tyro

NEEDED = {
    "ours": (
        *("onnxruntime", "numpy", "pillow", "python-multipart", "starlette", "anyio", "uvicorn"),
        "prometheus-client",
    ),
    "theirs": ("torch", "torchvision", "numpy", "pillow"),
}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Arguments."""

    onnx: Path | None = None
    """Exported model; by default one of random weights."""

    image: Path | None = None
    """Image to ask about; by default a drawn one of 800 x 600."""

    clients: tuple[int, ...] = (1, 8, 32)
    """How many ask at the same time."""

    seconds: float = 10.0
    """How long they ask."""

    only: Literal["", "theirs"] = ""
    """For the bench itself: the original's server, in this process."""

    port: int = 0
    """For the bench itself."""


def theirs(port: int) -> None:
    """A handler as the original's: torch, torchvision, resize to 255, crop to 224."""
    import io
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    import torch
    from PIL import Image
    from torchvision import models, transforms

    model = models.mobilenet_v2()
    model.classifier = torch.nn.Sequential(
        torch.nn.Dropout(0.2),
        torch.nn.Linear(1280, 512),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(512, 1024),
        torch.nn.Linear(1024, 4),
        torch.nn.LogSoftmax(dim=1),
    )
    model.eval()
    view = transforms.Compose(
        [
            transforms.Resize(255),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            with torch.no_grad():
                image = view(Image.open(io.BytesIO(data)).convert("RGB"))
                answer = int(model(image[None]).argmax())
            body = json.dumps({"index": answer}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


@dataclass
class Load:
    """What some clients saw."""

    times_ms: list[float]
    refused: int
    lost: int
    seconds: float

    def row(self) -> str:
        p50, p99 = np.percentile(self.times_ms, [50, 99])
        rate = len(self.times_ms) / self.seconds
        return f"{rate:8.1f}  {p50:7.0f}  {p99:7.0f}  {self.refused:7}  {self.lost:4}"


def load(port: int, image: bytes, clients: int, seconds: float) -> Load:
    """So many clients ask, each as soon as it has its answer."""
    seen = Load([], 0, 0, seconds)
    end = time.monotonic() + seconds

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.monotonic() < end:
            start = time.monotonic()
            try:
                connection.request("POST", "/predict", image)
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException):
                seen.lost += 1
                connection.close()
                continue
            if response.status == 200:
                seen.times_ms.append(1000 * (time.monotonic() - start))
            elif response.status == 503:
                seen.refused += 1
                time.sleep(0.05)
            else:
                seen.lost += 1

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def first_answer(port: int, image: bytes) -> None:
    """Returns when the server has answered."""
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", "/predict", image)
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.02)


def size_mb(side: str) -> float:
    """What the packages of a side take on disk, with what they need of NVIDIA's left out."""
    total = 0
    for name in NEEDED[side]:
        files = distribution(name).files or []
        total += sum(file.locate().stat().st_size for file in files if file.locate().is_file())
    return total / 1e6


def main(job: Bench) -> None:
    """Prints the tables."""
    if job.only:
        theirs(job.port)
        return
    from tests.jobs.processes import free_port

    with tempfile.TemporaryDirectory() as temporary:
        onnx = job.onnx or random_model(Path(temporary) / "model.onnx")
        image = job.image.read_bytes() if job.image else drawn()
        rows = []
        print("side     first answer s   resident MB   packages MB")
        for side in ("theirs", "ours"):
            port = free_port()
            serve = [sys.executable, str(ROOT / "ray_jobs" / "serve.py"), "--onnx", str(onnx)]
            words = {
                "ours": [*serve, "--port", str(port)],
                "theirs": [sys.executable, __file__, "--only", "theirs", "--port", str(port)],
            }[side]
            cold = []
            for _ in range(3):
                start = time.monotonic()
                with subprocess.Popen(
                    words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                ) as server:
                    try:
                        first_answer(port, image)
                        cold.append(time.monotonic() - start)
                        if len(cold) == 3:
                            memory = psutil.Process(server.pid).memory_info().rss / 1e6
                            size = size_mb(side)
                            print(f"{side:8} {min(cold):14.2f}   {memory:11.0f}   {size:11.0f}")
                            rows += [
                                (side, clients, load(port, image, clients, job.seconds))
                                for clients in job.clients
                            ]
                    finally:
                        server.kill()
        print("side     clients  answers/s   p50 ms   p99 ms  refused  lost")
        for side, clients, seen in rows:
            print(f"{side:8} {clients:7}   {seen.row()}")


def random_model(target: Path) -> Path:
    """An exported model of random weights."""
    from drone.labels import CLASSES
    from drone.model import export, mobilenet
    from drone.model.config import ModelConfig
    from drone.serving.predictor import class_metadata
    from drone.serving.preprocess import Preprocessing

    model = mobilenet.build(ModelConfig(test_time_flip=False), 4, 0, None).eval()
    facts = {**class_metadata(CLASSES), "preprocessing": Preprocessing().to_json()}
    export.to_onnx(model, target, 224, facts)
    return target


def drawn() -> bytes:
    """An image of 800 x 600 as JPEG."""
    import io

    from drone.labels import CLASSES
    from drone.synth.drawing import draw

    buffer = io.BytesIO()
    draw(CLASSES[3], 800, 600, np.random.default_rng(0)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
