"""Writes a page for reviewing the suspect labels of a data set, or for labelling served images.

    python ray_jobs/review.py --data data/drones --out review.html
    python ray_jobs/prepare.py --raw images --out data/drones --decisions decisions-....jsonl

    python ray_jobs/review.py --served served --model models:/drone-classifier@champion
    python ray_jobs/prepare.py --raw images --out data/drones --served served \\
        --decisions decisions-....jsonl

The page needs no server: open it in a browser, decide by keys, and export the decisions; the
browser saves them as decisions-....jsonl in its download folder. The page shows exact duplicates in
several classes, suspect labels, and near duplicates. Confident learning on frozen features
estimates the number of wrong labels, the accuracy that they allow, and what more images of each
class, or cleaner labels, would add.

With --served it shows images that serve.py --keep has kept, the most informative first: unsure
ones and those that a candidate model answers differently, one of each group of near duplicates.
"""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
ROOTS = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(root for root in ROOTS if (root / "drone").is_dir())))

from ray_jobs import bug_report

bug_report.install(__name__)

from drone.workflows.requests import ReviewRequest
from ray_jobs import cli, console, dataset_tables


@dataclass(frozen=True, kw_only=True)
class Review(ReviewRequest):
    """Arguments of the job."""

    weights: str = field(default_factory=cli.default_weights)
    """Weights of the features: imagenet (downloaded once) or a file; DRONE_WEIGHTS sets another
    default."""

    json: bool = False
    """Print the result as one JSON object, last."""


def main(job: Review) -> cli.Result:
    """Runs the job."""
    if job.served is not None:
        return _review_served(job)
    # Imported late: it takes seconds, for which --help and wrong usage should not wait.
    from drone.workflows import review

    result = review.write_review_page(job, console.ConsoleDisplay())
    table = result.true_classes
    title = "Of each given class (row), estimated share that is"
    console.table(title, ["given", *result.short_names], dataset_tables.rows_of(table))
    console.show(
        f"{result.num_suspects} labels are suspect. A model without errors would get "
        f"{review.describe(result.ceiling)} on the test split as it is labelled.",
        *result.advice,
        f"Decide in a browser: {job.out.resolve()}",
        f"Then: {result.prepare_again}",
    )
    return {
        "page": str(job.out),
        "shown": result.num_shown,
        "suspects": result.num_suspects,
        "ceiling": asdict(result.ceiling),
        "wrong": table.to_dict("index"),
        "held_out_accuracy": result.accuracy,
        "learning_curve": asdict(result.curve),
    }


def _review_served(job: Review) -> cli.Result:
    from drone.workflows import served_review

    result = served_review.write_served_page(job, console.ConsoleDisplay())
    left_out = [f"{count} {reason}" for reason, count in result.left_out.items()]
    console.show(
        f"{result.num_shown} of {result.num_images} served images are on the page.",
        *([f"Left out: {', '.join(left_out)}."] if left_out else []),
        f"Decide in a browser: {job.out.resolve()}",
        f"Then: {result.prepare_again}",
    )
    return {
        "page": str(job.out),
        "shown": result.num_shown,
        "images": result.num_images,
        "left_out": dict(result.left_out),
    }


if __name__ == "__main__":
    cli.start(Review, main, __doc__)
