"""Finding copies and near duplicates: ours against imagededup and cleanvision, in one run.

    pip install imagededup cleanvision
    python bench/prepare.py --images 4000                        (made-up images of 400 px)
    python bench/prepare.py --data RAW                           (your own folder of class folders)

Each side starts in a process of its own and looks at the same files for exact and near duplicates:
imagededup by perceptual hash, cleanvision by md5 and perceptual hash, ours by the whole scan of
`prepare.py` (which also decodes, measures and judges each file) and its plan, mostly on a local
Ray. All of them use every processor. Memory is the most that all processes of a side held at one
time, shared pages counted once (proportional set size).
"""

import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import psutil
import tyro

SIDES = ("ours", "imagededup", "cleanvision")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Arguments."""

    data: Path | None = None
    """Raw folder of class folders; by default images are made up."""

    images: int = 4000
    """How many of the 21,805 files of the original collection's structure to make up."""

    rounds: int = 1
    """How often each side is measured, taking turns; the best counts."""

    only: Literal["", "ours", "imagededup", "cleanvision"] = ""
    """One side, in this process; for the bench itself."""


def ours(folder: Path) -> int:
    """Files in sets of copies or groups of near duplicates."""
    from drone.data.prepare.plan import PrepareSettings, plan_dataset
    from drone.workflows.mapping import mapper

    with mapper() as map_rows:
        frame = plan_dataset([folder], PrepareSettings(), map_rows).manifest
    copies = frame.duplicated("md5", keep=False) & (frame["md5"] != "")
    near = (frame["group"] != "") & frame.duplicated("group", keep=False)
    return int((copies | near).sum())


def imagededup(folder: Path) -> int:
    """Files with a duplicate, by its perceptual hash and default distance."""
    from imagededup.methods import PHash

    hasher = PHash(verbose=False)
    codes = hasher.encode_images(image_dir=folder, recursive=True)
    return sum(map(bool, hasher.find_duplicates(encoding_map=codes).values()))


def cleanvision(folder: Path) -> int:
    """Files with an exact or near duplicate, by its defaults."""
    from cleanvision import Imagelab

    lab = Imagelab(data_path=str(folder))
    lab.find_issues({"exact_duplicates": {}, "near_duplicates": {}}, verbose=False)
    found = lab.issues
    flags = found["is_exact_duplicates_issue"] | found["is_near_duplicates_issue"]
    return int(flags.sum())


def measure(side: str, folder: Path) -> tuple[float, float, int]:
    """Seconds, most memory in MiB and files found by one side in a process of its own."""
    words = [sys.executable, __file__, "--only", side, "--data", str(folder)]
    start = time.monotonic()
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        most = [0.0]
        watch = threading.Thread(target=_watch, args=(process.pid, most), daemon=True)
        watch.start()
        out, err = process.communicate()
    if process.returncode:
        sys.exit(f"{side} failed:\n{err[-2000:]}")
    return time.monotonic() - start, most[0], int(out.split()[-1])


def _watch(pid: int, most: list[float]) -> None:
    while psutil.pid_exists(pid):
        total = 0.0
        try:
            tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in tree:
            try:
                total += process.memory_full_info().pss / 2**20
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        most[0] = max(most[0], total)
        time.sleep(0.5)


def main(job: Bench) -> None:
    """Prints the table."""
    if job.only:
        assert job.data is not None
        print(
            {"ours": ours, "imagededup": imagededup, "cleanvision": cleanvision}[job.only](job.data)
        )
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = job.data or made_up(Path(temporary) / "raw", job.images)
        count = sum(file.is_file() for file in folder.rglob("*"))
        print(
            f"{count} files\nside          seconds   files/s   ours is faster   MiB   files found"
        )
        best: dict[str, tuple[float, float, int]] = {}
        for _ in range(job.rounds):
            for side in SIDES:
                done = measure(side, folder)
                best[side] = min(best.get(side, done), done)
        for side in SIDES:
            seconds, memory, found = best[side]
            ratio = seconds / best["ours"][0]
            print(
                f"{side:12} {seconds:8.1f}  {count / seconds:8.0f}  {ratio:14.1f}  {memory:4.0f}"
                f"  {found:12}"
            )


def made_up(folder: Path, images: int) -> Path:
    """The first files of each class of a collection of the original's structure."""
    from tests.data import seed_set

    seed_set.write(folder, max_per_class=images // 4)
    return folder


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
