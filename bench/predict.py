"""Images per second and peak memory of the predict job, beside the usual loops.

    python bench/predict.py --onnx export/model.onnx --images my-images --num 5000

Contenders run one after the other, in turns, each in a process of its own, on the same JPEGs of
mixed sizes, which are made from real images. Ours is the whole job, with tables and contact sheet;
of the others the loop is timed, without imports, loading the model and a first batch.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SIDES_PX = {400: 0.4, 800: 0.3, 1600: 0.2, 3000: 0.1}
"""Longer sides of the images, and the share of each."""

BATCH_SIZE, SIDE_PX = 32, 224


def make_images(source: Path, folder: Path, num: int) -> None:
    """Writes JPEGs of mixed sizes, made of the images of a folder."""
    files = sorted(file for file in source.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
    rng = np.random.default_rng(0)
    sides = rng.choice(list(SIDES_PX), num, p=list(SIDES_PX.values()))
    folder.mkdir(parents=True)
    for number, side in enumerate(sides):
        image = Image.open(files[number % len(files)]).convert("RGB")
        scale = side / max(image.size)
        size = tuple(max(1, round(length * scale)) for length in image.size)
        image.resize(size).save(folder / f"{number:05}.jpg", quality=int(rng.integers(75, 95)))


def ours(onnx: Path, folder: Path) -> float:
    from drone.workflows.prediction import predict
    from drone.workflows.requests import PredictRequest

    with tempfile.TemporaryDirectory() as out:
        request = PredictRequest(onnx=onnx, images=(str(folder),), out=Path(out))
        start = time.perf_counter()
        predict(request)
        return time.perf_counter() - start


def torchvision_loop(onnx: Path, folder: Path) -> float:
    import torch
    from torchvision.models import mobilenet_v2
    from torchvision.transforms import v2

    transform = v2.Compose([
        v2.PILToTensor(),
        v2.Resize((SIDE_PX, SIDE_PX), antialias=True),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    files = sorted(folder.iterdir())

    class Files(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> torch.Tensor:
            return transform(Image.open(files[index]).convert("RGB"))

    model = mobilenet_v2(num_classes=4).eval().to(memory_format=torch.channels_last)
    loader = torch.utils.data.DataLoader(Files(), BATCH_SIZE, num_workers=os.cpu_count() or 1)

    def predict(images_NCHW: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            return model(images_NCHW.to(memory_format=torch.channels_last)).softmax(1)

    predict(torch.zeros(BATCH_SIZE, 3, SIDE_PX, SIDE_PX))
    start = time.perf_counter()
    for images_NCHW in loader:
        predict(images_NCHW)
    return time.perf_counter() - start


def onnxruntime_loop(onnx: Path, folder: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx)
    session.run(None, {"pixels": np.zeros((1, SIDE_PX, SIDE_PX, 3), np.uint8)})
    start = time.perf_counter()
    for file in sorted(folder.iterdir()):
        image = Image.open(file).convert("RGB").resize((SIDE_PX, SIDE_PX), Image.BILINEAR)
        session.run(None, {"pixels": np.asarray(image)[None]})
    return time.perf_counter() - start


def ultralytics_predict(onnx: Path, folder: Path) -> float:
    from ultralytics import YOLO

    model = YOLO("yolo11n-cls.yaml")
    model.predict(np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8), imgsz=SIDE_PX, verbose=False)
    start = time.perf_counter()
    results = model.predict(folder, imgsz=SIDE_PX, batch=BATCH_SIZE, stream=True, verbose=False)
    for _ in results:
        pass
    return time.perf_counter() - start


CONTENDERS: dict[str, Callable[[Path, Path], float]] = {
    "ours": ours,
    "torchvision": torchvision_loop,
    "onnxruntime": onnxruntime_loop,
    "ultralytics": ultralytics_predict,
}


def peak_bytes(process: subprocess.Popen[str], stop: threading.Event) -> int:
    """Returns the peak of the proportional set size of a process and its children."""
    peak = 0
    while not stop.wait(0.2):
        total = 0
        try:
            parent = psutil.Process(process.pid)
            for member in (parent, *parent.children(recursive=True)):
                total += member.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
        peak = max(peak, total)
    return peak


def measure(name: str, onnx: Path, folder: Path) -> dict[str, float] | None:
    """Runs one contender in a process; None where it is not installed."""
    command = [sys.executable, __file__, "--onnx", onnx, "--images", folder, "--contender", name]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    stop, peaks = threading.Event(), []
    watcher = threading.Thread(target=lambda: peaks.append(peak_bytes(process, stop)))
    watcher.start()
    output, _ = process.communicate()
    stop.set()
    watcher.join()
    line = output.strip().splitlines()[-1] if output.strip() else ""
    if process.returncode == 3:
        return None
    assert process.returncode == 0, f"{name} failed"
    return {**json.loads(line), "peak_mib": peaks[0] / 2**20}


def run_contender(name: str, onnx: Path, folder: Path) -> None:
    try:
        seconds = CONTENDERS[name](onnx, folder)
    except ImportError:
        sys.exit(3)
    own, children = time.process_time(), sum(os.times()[2:4])
    print(json.dumps({"wall_s": seconds, "cpu_s": own + children}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--num", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contender", choices=list(CONTENDERS))
    args = parser.parse_args()
    if args.contender:
        run_contender(args.contender, args.onnx, args.images)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        make_images(args.images, folder, args.num)
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for _ in range(args.rounds):
            for name in CONTENDERS:
                if result := measure(name, args.onnx, folder):
                    measured[name].append(result)
    speeds = {
        name: [args.num / result["wall_s"] for result in results]
        for name, results in measured.items()
    }
    for name, results in measured.items():
        if not results:
            print(f"{name}: not installed, skipped")
            continue
        ratio = np.median(np.array(speeds["ours"]) / speeds[name])
        print(
            f"{name}: {np.median(speeds[name]):.1f} images/s, ours is {ratio:.2f} times as fast; "
            f"{1e3 * np.median([r['cpu_s'] for r in results]) / args.num:.1f} ms of processor time "
            f"per image with the start, peak {max(r['peak_mib'] for r in results):.0f} MiB"
        )


if __name__ == "__main__":
    main()
