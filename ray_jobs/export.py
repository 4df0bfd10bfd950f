"""Writes the files that answer for a model: ONNX with all that serving must know inside.

    python ray_jobs/export.py --model models:/drone-classifier@champion --out export
    python ray_jobs/export.py --run finetune-s0 --out export --page public

The exported model is compared with the trained one on the test split, calibrated on validation, and
tried in 8-bit integers, which are kept if they cost at most half a point and are quicker here.
--page makes a folder that is a whole web site: the page with the model in it, for S3 or any server.
"""

import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
PLACES = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
ROOT = next(place for place in PLACES if (place / "drone").is_dir())
sys.path.insert(0, str(ROOT))

from drone.errors import ConfigError, DataError
from ray_jobs import cli


@dataclass(frozen=True, kw_only=True)
class Export:
    """Arguments of the job."""

    model: str | None = None
    """Registered model, such as models:/drone-classifier@champion."""

    run: str | None = None
    """Run whose model is exported, instead."""

    out: Path
    """Folder for model.onnx, model.json and export.json."""

    page: Path | None = None
    """Folder for the page with the model in it, ready to be put on a web server."""

    data: str | None = None
    """Data set that the model was trained on, if it has moved."""

    unsure_below: float | None = None
    """Probability of the best class below which an answer is unsure; chosen on validation."""

    unchecked: bool = False
    """Export although the trained weights to compare with are gone."""

    experiment: str = "drone"
    """Experiment in MLflow."""

    json: bool = False
    """Print the result as one JSON object, last."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.run is None):
            raise ConfigError("Name what to export: either --model URI or --run RUN.")
        if self.unsure_below is not None and not 0 <= self.unsure_below <= 1:
            raise ConfigError(f"--unsure-below is {self.unsure_below}; it must be 0 to 1.")
        for option, folder in (("--out", self.out), ("--page", self.page)):
            if folder is not None and folder.exists() and not folder.is_dir():
                raise ConfigError(f"{option} is {folder}, which is a file; name a folder.")


def main(job: Export) -> cli.Result:
    """Runs the job."""
    from drone.adapters import export_run, mlflow_model
    from drone.adapters import mlflow_tracking as tracking

    tracking.connect(job.experiment)
    exported = export_run.write(
        mlflow_model.named(job.model, job.run),
        job.out,
        job.data,
        job.unsure_below,
        unchecked=job.unchecked,
        say=cli.console.print,
    )
    facts, parity, integers = exported.facts, exported.parity, exported.integers
    if parity:
        cli.console.print(
            f"On {parity.pictures} test pictures the class is the trained model's for "
            f"{parity.same_top1:.0%}, probabilities differ by at most {parity.max_difference:.1e}."
        )
    if integers:
        cli.console.print(
            f"8-bit integers: accuracy {integers.accuracy:.3f} (fp32 {integers.accuracy_fp32:.3f}) "
            f"on validation, {integers.speedup:.1f} times as quick, {integers.mb:.1f} MB: "
            f"{'kept as model.int8.onnx' if integers.kept else 'not kept'}."
        )
    cli.console.print(
        f"Temperature {facts['temperature']}, unsure below {facts['unsure_below']}.\n"
        f"Wrote {job.out}. Next: python ray_jobs/serve.py --onnx {job.out / 'model.onnx'}",
        soft_wrap=True,
    )
    if job.page:
        _write_page(job.page, job.out)
        cli.console.print(f"The page: {job.page}", soft_wrap=True)
    return {
        "out": str(job.out),
        **facts,
        "parity": asdict(parity) if parity else None,
        "int8": asdict(integers) if integers else None,
    }


def _write_page(page: Path, exported: Path) -> None:
    web = ROOT / "web"
    if not web.is_dir():
        raise DataError(f"There is no page in {web}; run from a whole checkout of the project.")
    if page.exists() and any(page.iterdir()) and not (page / "config.json").is_file():
        raise DataError(f"{page} holds something else; give --page a new folder.")
    # What whoever set up the page has written into it stays.
    own = ["config.json"] if (page / "config.json").is_file() else []
    shutil.copytree(web, page, ignore=shutil.ignore_patterns(*own), dirs_exist_ok=True)
    (page / "model").mkdir(exist_ok=True)
    for name in ("model.onnx", "model.json"):
        shutil.copy(exported / name, page / "model" / name)


if __name__ == "__main__":
    cli.start(Export, main, __doc__)
