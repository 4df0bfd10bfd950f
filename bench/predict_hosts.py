"""How the predict job scales from one host to two, on one machine.

    python bench/predict_hosts.py --onnx export/model.onnx --images my-images --num 4000

A host is a Ray node that is pinned to one core and has one processor, so this needs two idle cores.
The job shares the first host's core, as it does on a cluster's head. Rounds with one host and with
two alternate, on the JPEGs of bench/predict.py.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.predict import make_images

ADDRESS = "127.0.0.1:6399"
RAY = str(Path(sys.executable).parent / "ray")
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled"}
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def on_core(core: int, command: Sequence[str]) -> list[str]:
    return ["taskset", "-c", str(core), *command]


@contextlib.contextmanager
def host(core: int) -> Iterator[None]:
    """A Ray node on one core, the head on core 0, while the block runs."""
    port = ADDRESS.partition(":")[2]
    role = ["--address", ADDRESS] if core else ["--head", "--port", port]
    options = ["--node-ip-address", "127.0.0.1", "--num-cpus", "1"]
    process = subprocess.Popen(
        on_core(core, [RAY, "start", "--block", *role, *options]), env=ENVIRONMENT, **QUIET
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def predict(onnx: Path, folder: Path, out: Path) -> float:
    job = [sys.executable, str(ROOT / "ray_jobs" / "predict.py"), "--onnx", str(onnx)]
    options = ["--images", str(folder), "--out", str(out), "--ray-from", "0"]
    environment = {**ENVIRONMENT, "RAY_ADDRESS": ADDRESS}
    start = time.perf_counter()
    subprocess.run(on_core(0, [*job, *options]), env=environment, check=True, **QUIET)
    return time.perf_counter() - start


def measure(num_hosts: int, onnx: Path, folder: Path) -> float:
    """Returns seconds of the whole job, without starting the hosts."""
    with contextlib.ExitStack() as stack:
        for core in range(num_hosts):
            stack.enter_context(host(core))
            time.sleep(15)  # Until it has joined.
        out = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return predict(onnx, folder, out / "answers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--num", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        make_images(args.images, folder, args.num)
        seconds = [
            [measure(hosts, args.onnx, folder) for hosts in (1, 2)] for _ in range(args.rounds)
        ]
    one_s, two_s = np.median(seconds, axis=0)
    print(
        f"one host: {args.num / one_s:.1f} images/s, two: {args.num / two_s:.1f} images/s, "
        f"{np.median([one / two for one, two in seconds]):.2f} times as fast"
    )


if __name__ == "__main__":
    main()
