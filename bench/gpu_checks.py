"""All that the project does on a GPU, checked and measured: one table.

    bench/gpu_checks.sh WHEELS             (a bare machine with torch)
    python bench/gpu_checks.py             (an environment that is complete)
    python bench/gpu_checks.py --small     (on a processor: whether the checks themselves work)

Each check runs in a process of its own with a limit on its time, so that one that fails or hangs
costs no other. The images are drawn and the weights random: speeds do not depend on them.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SEARCH_TRIALS = 8

Row = tuple[str, str]
"""What was measured, and the figure."""


@dataclass(frozen=True)
class Check:
    """One of the checks."""

    run: Callable[[bool, Path], list[Row]]
    """Called with whether sizes are small, and a folder; raises if something does not hold."""

    limit_s: int
    needs: tuple[str, ...] = ()
    """Modules beside torch, numpy and those of the standard library."""


def device() -> Any:
    """The card, or the processor without one."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dataset_in(folder: Path, small: bool) -> Any:
    """A made-up data set, prepared once for all checks."""
    from drone.data.dataset import is_dataset, open_dataset
    from drone.data.prepare.plan import PrepareSettings, map_sequentially, plan_dataset
    from drone.data.prepare.write import write_dataset
    from drone.serving.preprocess import Preprocessing
    from drone.synth.raw_folder import SynthSettings, write_raw_folder

    out = folder / "dataset"
    if not is_dataset(out):
        write_raw_folder(folder / "raw", SynthSettings(images_per_class=12 if small else 80))
        side = Preprocessing(side_px=64) if small else Preprocessing()
        settings = replace(PrepareSettings(), policy="first", preprocessing=side)
        write_dataset(
            plan_dataset([folder / "raw"], settings, map_sequentially), out, map_sequentially
        )
    return open_dataset(out)


def trained(
    folder: Path, small: bool, cache: bool = False, **changes: Any
) -> tuple[list[dict[str, Any]], float]:
    """The history of a run on the device, and its seconds after the first epoch."""
    from drone.config import override
    from drone.model import mobilenet
    from drone.presets import get_preset
    from drone.training.activation_cache.store import CacheSpec
    from drone.training.context import LocalContext
    from drone.training.data import TrainingData
    from drone.training.loop import fit

    base = {"epochs": 2 if small else 4, "model": {"unfreeze_depth": 2}, "views": 1}
    config = override(override(get_preset("finetune"), base, "check"), changes, "check")
    dataset = dataset_in(folder, small)
    model = mobilenet.build(config.model, len(dataset.classes), 0, None)
    with tempfile.TemporaryDirectory() as temporary:
        context = LocalContext(Path(temporary) / "checkpoints")
        context.device = device()
        spec = CacheSpec(folder=folder / "activations", disk_gb=2.0) if cache else None
        history = fit(config, TrainingData.of(dataset), model, context, spec)
    times = [entry["time_ms"] for entry in history]
    return history, (times[-1] - times[0]) / 1000


def check_device(small: bool, folder: Path) -> list[Row]:
    """Names the card and its rate of matrix products."""
    import torch

    from bench.training import gemm_macs_per_s
    from drone.training.device import activation_dtype

    where = device()
    name = torch.cuda.get_device_name() if where.type == "cuda" else "processor"
    kind = str(activation_dtype("auto", where)).removeprefix("torch.")
    rate = gemm_macs_per_s(where, 512 if small else 8192, 0.2 if small else 1.0)
    return [
        ("device", f"{name}, torch {torch.__version__}, Python {sys.version.split()[0]}"),
        (f"matrix products in {kind}", f"{rate / 1e12:.2f} trillion multiply-adds per second"),
    ]


def check_pipeline(small: bool, folder: Path) -> list[Row]:
    """Training steps with our input against steps on resident random data, eager to graphs."""
    sizes = ["--images", "32", "--batch", "16", "--steps", "1", "--rounds", "1"]
    modes = ["--modes", "eager"] if small or device().type == "cpu" else []
    args = [*sizes, *modes] if small else ["--steps", "20", "--batch", "256", *modes]
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "gpu.py"), *args],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()[2:]
    return [("input pipeline", line) for line in lines]


def check_resident(small: bool, folder: Path) -> list[Row]:
    """Pixels in the device's memory and views made there against those of the processor."""
    import numpy as np
    import torch

    from drone.data import augmentation
    from drone.data.batches import DeviceSplit
    from drone.model.mobilenet import IMAGENET_MEAN, IMAGENET_STD
    from drone.presets import get_preset

    split = dataset_in(folder, small).split("train")
    positions = np.arange(min(16, len(split)))
    views = []
    for where in (device(), torch.device("cpu")):
        images = DeviceSplit(split, where)
        pixels = images.pixels(positions)
        mean, std = (torch.tensor(v, device=where) for v in (IMAGENET_MEAN, IMAGENET_STD))
        settings = replace(get_preset("distant").augment, distance_p=0.5)
        drawn = augmentation.draw(settings, 0, 0, images.keys_N[positions])
        views.append((pixels.cpu(), augmentation.apply(pixels, drawn, mean, std).float().cpu()))
    assert torch.equal(views[0][0], views[1][0]), "pixels differ"
    worst = float((views[0][1] - views[1][1]).abs().max())
    assert worst < 0.05, f"views differ by up to {worst}"
    return [("views on the device", f"differ from the processor's by up to {worst:.1e}")]


def check_cache(small: bool, folder: Path) -> list[Row]:
    """A run that reads its activations against one that computes them: the same numbers."""
    computed, seconds = trained(folder, small)
    trained(folder, small, cache=True)
    read, read_seconds = trained(folder, small, cache=True)
    pairs = [
        abs(left["metrics"]["train/loss"] - right["metrics"]["train/loss"])
        for left, right in zip(computed, read, strict=True)
    ]
    assert max(pairs) < 1e-2, f"losses differ by up to {max(pairs)}"
    ratio = seconds / max(read_seconds, 1e-3)
    return [("activation cache", f"losses differ by up to {max(pairs):.1e}; {ratio:.1f} times")]


def check_precision(small: bool, folder: Path) -> list[Row]:
    """Accuracy in bf16, fp32 and with torch.compile."""
    rows = []
    variants: dict[str, dict[str, Any]] = {
        "fp32": {"precision": "fp32"},
        "bf16": {"precision": "bf16"},
    }
    if device().type == "cuda":
        variants["bf16, compiled"] = {"precision": "bf16", "compile": True}
    for name, changes in variants.items():
        history, seconds = trained(folder, small, **changes)
        metrics = history[-1]["metrics"]
        figures = f"loss {metrics['validation/loss']:.3f}, accuracy "
        rows.append((name, f"{figures}{metrics['validation/accuracy']:.3f}, {seconds:.1f} s"))
    return rows


def _rank(rank: int, backend: str, folder: Path, small: bool) -> None:
    import torch
    import torch.distributed as distributed

    from drone.config import override
    from drone.model import mobilenet
    from drone.presets import get_preset
    from drone.training.context import LocalContext
    from drone.training.data import TrainingData
    from drone.training.loop import fit

    if torch.cuda.is_available():
        torch.cuda.set_device(0)
    where = f"file://{folder}/meeting-{backend}"
    distributed.init_process_group(backend, init_method=where, rank=rank, world_size=2)
    changes = {"epochs": 2, "model": {"unfreeze_depth": 2}, "precision": "fp32"}
    config = override(get_preset("finetune"), changes, "check")
    dataset = dataset_in(folder, small)
    context = LocalContext(folder / f"checkpoints-{backend}")
    context.rank, context.world_size, context.device = rank, 2, device()
    model = mobilenet.build(config.model, len(dataset.classes), 0, None)
    history = fit(config, TrainingData.of(dataset), model, context)
    if rank == 0:
        losses = [entry["metrics"]["train/loss"] for entry in history]
        (folder / f"losses-{backend}.json").write_text(json.dumps(losses))
    distributed.destroy_process_group()


def check_two_processes(small: bool, folder: Path) -> list[Row]:
    """Two processes on one card by nccl, or by gloo where nccl refuses to share it."""
    import torch.multiprocessing

    from drone.training.device import set_tf32

    set_tf32(False)
    alone, _ = trained(folder, small, precision="fp32", epochs=2, views=0)
    expected = [entry["metrics"]["train/loss"] for entry in alone]
    rows = []
    backends = ["nccl", "gloo"] if device().type == "cuda" else ["gloo"]
    for backend in backends:
        try:
            torch.multiprocessing.start_processes(
                _rank, (backend, folder, small), nprocs=2, start_method="spawn"
            )
        except torch.multiprocessing.ProcessRaisedException as error:
            reason = str(error).strip().splitlines()[-1][:120]
            rows.append((f"two processes, {backend}", f"refused: {reason}"))
            continue
        losses = json.loads((folder / f"losses-{backend}.json").read_text())
        worst = max(abs(left - right) for left, right in zip(losses, expected, strict=True))
        assert worst < 2e-3, f"losses of two processes differ by {worst}"
        rows.append((f"two processes, {backend}", f"losses differ by up to {worst:.1e}"))
        break
    assert "refused" not in rows[-1][1], "no backend works"
    return rows


def _run_job(name: str, *args: object, folder: Path) -> tuple[dict[str, Any], float]:
    words = [sys.executable, str(ROOT / "ray_jobs" / f"{name}.py"), *map(str, args), "--json"]
    began = time.perf_counter()
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    return json.loads(done.stdout.splitlines()[-1]), time.perf_counter() - began


def check_search(small: bool, folder: Path) -> list[Row]:
    """A search whose trials share the card."""
    dataset_in(folder, small)
    share = ["--gpus-per-worker", 0.25] if device().type == "cuda" else []
    trials = 2 if small else SEARCH_TRIALS
    args = ["--data", folder / "dataset", "--num-trials", trials, "--weights", "none", *share]
    args += ["--epochs", 1 if small else 3]
    _, seconds = _run_job("tune", *args, folder=folder)
    return [(f"search, {trials} trials", f"{seconds:.0f} s in all")]


def check_search_ratio(small: bool, folder: Path) -> list[Row]:
    """The search against the tutorials' way, which runs two of the trials."""
    sizes = ["--trials", "3", "--epochs", "1"] if small else ["--trials", "30", "--epochs", "4"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "search.py"), *sizes, "--their-trials", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [("search against tutorials", line) for line in done.stdout.splitlines() if line]


def check_onnx(small: bool, folder: Path) -> list[Row]:
    """The exported model on each provider: the same answers, and its rate."""
    import numpy as np
    import onnxruntime

    from drone.model import export, mobilenet
    from drone.model.config import ModelConfig
    from drone.serving.predictor import class_metadata

    dataset = dataset_in(folder, small)
    side_px = dataset.preprocessing.side_px
    model = mobilenet.build(ModelConfig(), len(dataset.classes), 0, None).eval()
    target = folder / "model.onnx"
    facts = {
        **class_metadata(dataset.classes),
        "preprocessing": dataset.preprocessing.to_json(),
    }
    export.to_onnx(model, target, side_px, facts)
    pixels = np.random.default_rng(0).integers(
        0, 256, (8 if small else 64, side_px, side_px, 3), dtype=np.uint8
    )
    rows, answers = [], []
    for provider in ("CPUExecutionProvider", "CUDAExecutionProvider"):
        if provider not in onnxruntime.get_available_providers():
            rows.append((provider, "not in this build of onnxruntime"))
            continue
        session = onnxruntime.InferenceSession(target, providers=[provider])
        answers.append(session.run(["probabilities"], {"pixels": pixels})[0])
        began = time.perf_counter()
        for _ in range(1 if small else 10):
            session.run(["probabilities"], {"pixels": pixels})
        seconds = (time.perf_counter() - began) / (1 if small else 10)
        rows.append((provider, f"{len(pixels) / seconds:.0f} images/s"))
    worst = max(float(np.abs(answer - answers[0]).max()) for answer in answers)
    assert worst < 1e-2, f"providers differ by {worst}"
    return [*rows, ("providers", f"differ by up to {worst:.1e}")]


CHECKS = {
    "device": Check(check_device, 60),
    "views": Check(check_resident, 60, ("pandas", "PIL")),
    "pipeline": Check(check_pipeline, 120, ("tyro",)),
    "cache": Check(check_cache, 60, ("pandas", "PIL")),
    "precision": Check(check_precision, 90, ("pandas", "PIL")),
    "processes": Check(check_two_processes, 60, ("pandas", "PIL")),
    "onnx": Check(check_onnx, 60, ("onnxruntime", "onnxscript", "pandas", "PIL")),
    "search": Check(check_search, 90, ("ray", "optuna", "mlflow", "tyro")),
    "search-ratio": Check(check_search_ratio, 180, ("ray", "optuna", "mlflow", "tyro")),
}

BUDGET_S = 460
"""Time for all checks; those that would begin later are left out, and named."""


def run_check(name: str, folder: Path, small: bool) -> list[Row]:
    """Runs a check in a process of its own; returns its rows, or why it has none."""
    check = CHECKS[name]
    missing = [module for module in check.needs if importlib.util.find_spec(module) is None]
    if missing:
        return [(name, f"skipped: {', '.join(missing)} not installed")]
    words = [sys.executable, __file__, "--only", name, "--folder", str(folder)]
    limit_s = check.limit_s * (5 if small else 1)
    try:
        done = subprocess.run(
            words + (["--small"] if small else []),
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [(name, f"FAILED: took more than {limit_s} s")]
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        return [(name, f"FAILED: {reason[:200]}")]
    return [tuple(row) for row in json.loads(done.stdout.splitlines()[-1])]


def main(arguments: list[str]) -> int:
    """Prints the table; returns 1 if a check failed."""
    small = "--small" in arguments
    if "--only" in arguments:
        name = arguments[arguments.index("--only") + 1]
        folder = Path(arguments[arguments.index("--folder") + 1])
        print(json.dumps(CHECKS[name].run(small, folder)))
        return 0
    chosen = [name for name in arguments if name in CHECKS] or list(CHECKS)
    began, failed = time.monotonic(), False
    print("| check | what | figure | s |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for name in chosen:
            started = time.monotonic()
            if started - began > BUDGET_S and not small:
                print(f"| {name} | {name} | left out: no time left | 0 |")
                continue
            rows = run_check(name, Path(temporary), small)
            seconds = time.monotonic() - started
            for what, figure in rows:
                print(f"| {name} | {what} | {figure} | {seconds:.0f} |", flush=True)
                failed |= figure.startswith("FAILED")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
