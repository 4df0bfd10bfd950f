"""The structure of the original project's collection, as records and as files."""

import io
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from drone.labels import CLASSES

FILES = dict(zip(CLASSES, (8338, 4169, 3623, 5675), strict=True))
WITHIN = dict(zip(CLASSES, (407, 159, 247, 1445), strict=True))
ERRORS = {"Large QuadCopters": 7, "Winged Drones": 13}
ACROSS = {
    ("Large QuadCopters", "Small QuadCopters"): 70,
    ("Large QuadCopters", "Winged Drones"): 15,
    ("Small QuadCopters", "Winged Drones"): 19,
}
"""Number of images that two classes share."""

BOTH = 6
"""Winged drones that count as errors by their name and are copies too."""

_ERROR_SUFFIXES = ("gif", "jfif", "svg", "txt", "ipynb")
_SUFFIXES = ("jpg",) * 9 + ("jpeg",)


def layout() -> Iterator[tuple[str, int]]:
    """Yields the path and the content number of each of the 21,805 files; copies share a number."""
    content = iter(range(10**6))
    shared: dict[str, list[int]] = {name: [] for name in CLASSES}
    for name in CLASSES:
        for (first, second), count in ACROSS.items():
            if name == first:
                shared[second] += [next(content) for _ in range(count)]
                numbers = shared[second][-count:]
                yield from ((f"{name}/given_{second[0]}{n:06d}.jpg", n) for n in numbers)
        special = ERRORS.get(name, 0) + sum(
            count for (first, second), count in ACROSS.items() if name in (first, second)
        )
        both = BOTH if name == "Winged Drones" else 0
        for number in shared[name]:
            yield f"{name}/taken_{number:06d}.jpg", number
        for error in range(ERRORS.get(name, 0) - both):
            number = next(content)
            suffix = _ERROR_SUFFIXES[error % len(_ERROR_SUFFIXES)]
            yield f"{name}/error_{error:02d}.{suffix}", number
            if error < both:
                yield f"{name}/error_{error:02d} again.{suffix}", number
        copies = WITHIN[name] - both
        single = FILES[name] - special - 2 * copies
        for copy in range(copies):
            number = next(content)
            yield f"{name}/image_{number:06d}.jpg", number
            yield f"{name}/image_{number:06d} ({copy}).jpg", number
        for _ in range(single):
            number = next(content)
            yield f"{name}/image_{number:06d}.{_SUFFIXES[number % len(_SUFFIXES)]}", number


def image(number: int) -> bytes:
    """Returns a unique image as JPEG: smooth colours, a few hundred to some thousand pixels."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (rng.integers(5, 9), rng.integers(5, 9), 3), dtype=np.uint8)
    # Half of the original's images were wider than about 700 px, one in twenty below 224.
    width = int(np.clip(rng.lognormal(np.log(700), 0.7), 100, 6000))
    size = (width, int(width * rng.uniform(0.55, 1.0)))
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def write(folder: Path, max_per_class: int = 10**6) -> None:
    """Writes the collection, or its first files of each class, on all processors."""
    made = dict.fromkeys(CLASSES, 0)
    jobs = []
    for path, number in layout():
        name = path.split("/")[0]
        (folder / name).mkdir(parents=True, exist_ok=True)
        if made[name] < max_per_class:
            made[name] += 1
            jobs.append((folder / path, number))
    with ProcessPoolExecutor() as pool:
        list(pool.map(_write_one, jobs, chunksize=64))


def _write_one(job: tuple[Path, int]) -> None:
    file, number = job
    text = file.suffix in (".svg", ".txt", ".ipynb")
    file.write_bytes(f"no image {number}".encode() if text else image(number))
