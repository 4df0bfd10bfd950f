"""Writes a page on which a person decides on the doubtful pictures of a data set.

    python ray_jobs/review.py --data data/drones --out review.html
    python ray_jobs/prepare.py --raw pictures --out data/drones --decisions decisions-....jsonl

The page needs no server: open it in a browser, decide by keys, export the decisions. It shows
copies in several classes, labels that the pictures contradict, and near duplicates. How many labels
are wrong, and what accuracy they allow, is estimated by confident learning on frozen features.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
PLACES = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(place for place in PLACES if (place / "drone").is_dir())))

from drone.errors import ConfigError, DataError
from ray_jobs import cli


@dataclass(frozen=True, kw_only=True)
class Review:
    """Arguments of the job."""

    data: str
    """Data set that prepare.py wrote: a folder or a URI."""

    out: Path = Path("review.html")
    """The page; a table of the suspects is written beside it."""

    weights: str = field(default_factory=lambda: os.environ.get("DRONE_WEIGHTS", "imagenet"))
    """imagenet (downloaded once) or a file; DRONE_WEIGHTS sets another default."""

    suspects: int = 500
    """Doubtful labels to show at most, the worst ones."""

    json: bool = False
    """Print the result as one JSON object, last."""

    def __post_init__(self) -> None:
        if self.suspects < 0:
            raise ConfigError(f"--suspects is {self.suspects}; it must be 0 or more.")
        if self.weights == "none":
            raise ConfigError("--weights none sees nothing: name imagenet or a file of weights.")
        if self.out.suffix not in (".html", ".htm"):
            raise ConfigError(f"--out is {self.out}; it must end in .html.")


def main(job: Review) -> cli.Result:
    """Runs the job."""
    from drone.adapters import dataset_cache
    from drone.data import ledger
    from drone.evaluation import label_issues, review
    from drone.labels import SHORT
    from drone.model import weights

    if not job.out.resolve().parent.is_dir():
        raise DataError(f"There is no folder {job.out.resolve().parent} for --out.")
    dataset = dataset_cache.open_at(job.data, say=cli.console.print)
    decided = ledger.by_hand(ledger.read(dataset.folder / ledger.NAME))
    issues, suspects = label_issues.of_dataset(dataset, weights.load(job.weights), cli.track)
    suspects = suspects[~suspects["md5"].isin(decided)]
    suspects.to_csv(job.out.with_suffix(".csv"), index=False)
    shown = review.items(dataset.manifest, suspects.head(job.suspects), decided)
    ceiling = issues.ceiling
    said = f"{ceiling.accuracy:.3f} ({ceiling.low:.3f} to {ceiling.high:.3f})"
    facts = {
        "pictures to decide on": str(len(shown)),
        "decided before": str(len(decided)),
        "test accuracy that the labels allow": said,
    }
    review.write(job.out, dataset, shown, review.pictures(dataset), facts)
    wrong = label_issues.wrong_table(issues, dataset.classes)
    names = [SHORT.get(name, name) for name in dataset.classes]
    rows = [[name, *row] for name, row in zip(wrong.index, wrong.to_numpy().tolist(), strict=True)]
    cli.table("Of each given class (row), estimated share that is", ["given", *names], rows)
    cli.console.print(
        f"{len(suspects)} labels are doubtful. A model that is never wrong would get {said} on the "
        f"test split as it is labelled.\n"
        f"Decide in a browser: {job.out.resolve()}\n"
        f"Then: python ray_jobs/prepare.py --raw ... --out {job.data} --decisions FILE",
        soft_wrap=True,
    )
    return {
        "page": str(job.out),
        "shown": len(shown),
        "suspects": len(suspects),
        "ceiling": {"accuracy": ceiling.accuracy, "low": ceiling.low, "high": ceiling.high},
        "wrong": wrong.to_dict("index"),
        "held_out_accuracy": issues.accuracy,
    }


if __name__ == "__main__":
    cli.start(Review, main, __doc__)
