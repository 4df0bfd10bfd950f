"""Writes a page for deciding on the doubtful images of a data set, or on served images.

    python ray_jobs/review.py --data data/drones --out review.html
    python ray_jobs/prepare.py --raw images --out data/drones --decisions decisions-....jsonl

    python ray_jobs/review.py --served served --model models:/drone-classifier@champion
    python ray_jobs/prepare.py --raw images --served served --out data/drones --decisions D.jsonl

The page needs no server: open it in a browser, decide by keys, export the decisions. It shows
copies in several classes, labels that the images contradict, and near duplicates. The number of
wrong labels, and the accuracy that they allow, are estimated by confident learning on frozen
features; so is what more images of each class, or cleaner labels, would add.

With --served it shows images that serve.py --keep has kept, those first that a label would teach
the model most from: unsure ones, those that a candidate answers otherwise, and no two alike.
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
        f"{result.num_suspects} labels are doubtful. A model without errors would get "
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
