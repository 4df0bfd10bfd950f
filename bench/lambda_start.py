"""How long a Lambda function takes to its first answer: ours against one that imports torch.

    python bench/lambda_start.py                       (random weights)
    python bench/lambda_start.py --onnx export/model.onnx

Each start is a process of its own, timed until it has answered one JPEG of 1600 x 1200 and ended;
the sides take turns, so that what else the machine does falls on both. The files are in the page
cache, which the first start in a cloud does not have. `torch` is the tutorials' handler: torch and
torchvision imported, MobileNet_V2 loaded from its weights, the image through torchvision's
transforms.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import tyro
from PIL import Image

OURS = """
import base64, resource
from drone.serving.lambda_handler import handler
body = base64.b64encode(open({image!r}, "rb").read()).decode()
event = {{"httpMethod": "POST", "path": "/predict", "headers": {{"Content-Type": "image/jpeg"}},
         "requestContext": {{"stage": "prod"}}, "isBase64Encoded": True, "body": body}}
assert handler(event, None)["statusCode"] == 200
"""

TORCH = """
import torch, torchvision, resource
from PIL import Image
from torchvision import transforms
model = torchvision.models.mobilenet_v2(num_classes=4)
model.load_state_dict(torch.load({weights!r}, weights_only=True))
model.eval()
steps = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor(),
    transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
with torch.no_grad():
    model(steps(Image.open({image!r}).convert("RGB"))[None]).softmax(1)
"""

PEAK = "\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Arguments."""

    onnx: Path | None = None
    """Exported model; by default one with random weights."""

    package: Path | None = None
    """Unpacked package; by default one that is built for the Python that runs this."""

    python: str = sys.executable
    """Python that runs the package."""

    repeats: int = 7
    """Starts a side."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way to answer."""

    name: str
    command: list[str]
    cwd: Path


def main(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sides = make(bench, folder)
        found: dict[str, list[tuple[float, float]]] = {side.name: [] for side in sides}
        for side in sides:
            start(side)  # Brings its files into the page cache.
        for _ in range(bench.repeats):
            for side in sides:
                found[side.name].append(start(side))
    for name, runs in found.items():
        seconds, memory = zip(*runs, strict=True)
        print(
            f"{name:8} {statistics.median(seconds):6.2f} s (least {min(seconds):.2f}), "
            f"{statistics.median(memory):5.0f} MB"
        )
    ours, torch = (statistics.median(s for s, _ in found[name]) for name in ("ours", "torch"))
    print(json.dumps({"ours_s": round(ours, 3), "torch_s": round(torch, 3), "times": torch / ours}))


def make(bench: Bench, folder: Path) -> list[Side]:
    """Both sides, with what they need in the folder."""
    image, weights = folder / "image.jpg", folder / "weights.pth"
    Image.effect_noise((1600, 1200), 50).convert("RGB").save(image)
    _write_weights(weights)
    task = bench.package or _package(bench.onnx or _export(folder), folder)
    ours = OURS.format(image=str(image)) + PEAK
    theirs = TORCH.format(image=str(image), weights=str(weights)) + PEAK
    return [
        Side(name="ours", command=[bench.python, "-S", "-B", "-c", ours], cwd=task),
        Side(name="torch", command=[sys.executable, "-c", theirs], cwd=folder),
    ]


def start(side: Side) -> tuple[float, float]:
    """Seconds and most megabytes of a process that answers once."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769"}
    began = time.monotonic()
    done = subprocess.run(
        # By way of a shell: a process keeps the peak of the one it was forked from.
        ["/bin/sh", "-c", '"$@"', "sh", *side.command],
        cwd=side.cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return time.monotonic() - began, float(done.stdout.split()[-1])


def _write_weights(target: Path) -> None:
    import torch
    import torchvision

    torch.save(torchvision.models.mobilenet_v2(num_classes=4).state_dict(), target)


def _export(folder: Path) -> Path:
    from drone.labels import CLASSES
    from drone.model import export, mobilenet
    from drone.model.config import ModelConfig
    from drone.serving.predictor import class_metadata
    from drone.serving.preprocess import Preprocessing

    settings = Preprocessing()
    model = mobilenet.build(ModelConfig(), len(CLASSES), seed=0, backbone=None).eval()
    facts = {**class_metadata(CLASSES), "preprocessing": settings.to_json()}
    export.to_onnx(model, folder / "model.onnx", settings.side_px, facts)
    return folder / "model.onnx"


def _package(onnx: Path, folder: Path) -> Path:
    version = ".".join(map(str, sys.version_info[:2]))
    words = ["--onnx", str(onnx), "--out", str(folder / "lambda"), "--python", version]
    command = [sys.executable, str(ROOT / "deploy" / "lambda" / "package.py"), *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "lambda" / "package"


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
