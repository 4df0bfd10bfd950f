"""Predicts images and clips: folders, zip archives, files, globs or object storage.

    python ray_jobs/predict.py --model models:/drone-classifier@champion --images photos --out out
    python ray_jobs/predict.py --onnx export/model.onnx --images a.jpg b.zip 'c/*.png' --out out
    python ray_jobs/predict.py --run finetune-s0 --images photos --out out --sort link
    python ray_jobs/predict.py --run finetune-s0 --images clip.mp4 --every-s 0.2 --out out
    python ray_jobs/predict.py --run finetune-s0 --images frames --boxes boxes.csv --out out
    RAY_ADDRESS=auto python ray_jobs/predict.py --model models:/drone-classifier@champion
        --images s3://bucket/photos --out out                                      (a cluster)

--out gets predictions.parquet, predictions.csv and predictions.html, a contact sheet; of clips and
tracks also sequences.csv and sequences.html. A file that is no image has a row with the reason. The
same command continues what was interrupted.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
ROOTS = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(root for root in ROOTS if (root / "drone").is_dir())))

from ray_jobs import bug_report

bug_report.install(__name__)

from drone.workflows.requests import PredictRequest
from ray_jobs import cli, console

_MAX_SEQUENCES = 20
"""Clips and tracks on the screen; the table has all."""


@dataclass(frozen=True, kw_only=True)
class Predict(PredictRequest):
    """Arguments of the job."""

    json: bool = False
    """Print the result as one JSON object, last."""


def main(job: Predict) -> cli.Result:
    """Runs the job."""
    # Imported late, for --help and wrong usage.
    from drone.workflows import prediction

    result = prediction.predict(job, console.ConsoleDisplay())
    console.table("Predictions", ["label", "images"], list(result.labels.items()))
    for reason, count in result.not_read.items():
        console.warn(f"{count} {'file' if count == 1 else 'files'} not read: {reason}")
    console.show(
        f"Files: {result.num_images}, new: {result.num_new}, unsure: {result.num_unsure}"
        + ("" if result.num_alarms is None else f", alarms: {result.num_alarms}")
        + (f", speed: {result.images_per_s:g} images/s" if result.num_new else ""),
        f"Table: {result.table}",
        f"Contact sheet: {result.page.resolve()}",
    )
    for sequence in result.sequences[:_MAX_SEQUENCES]:
        console.show(sequence.sentence)
    if result.sequences:
        console.show(f"All {len(result.sequences)} clips and tracks: {job.out / 'sequences.html'}")
    if result.class_folders:
        console.show(f"In class folders: {result.class_folders}")
    return result.as_dict()


if __name__ == "__main__":
    cli.start(Predict, main, __doc__)
