"""Requests of the workflows; the jobs' command lines are made from these.

Nothing heavy is imported here, so that --help and wrong usage answer at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from drone.errors import ConfigError
from drone.project import ROOT
from drone.redaction import redact


@dataclass(frozen=True, kw_only=True)
class PrepareRequest:
    """Arguments of preparing a data set."""

    raw: tuple[str, ...] = ()
    """Folders, zip archives or URIs (s3://...), each with one subfolder per class."""

    negatives: tuple[str, ...] = ()
    """Folders, zip archives or URIs of images that show none of the classes, such as planes or
    empty sky, each with one subfolder per kind; images beside these are of the kind other."""

    classes: tuple[str, ...] = ()
    """Names of the classes; or a YAML file with a name and optionally short, role (bird, drone or
    other) and folders for each; or the word folders, which makes every subfolder of the raw folders
    a class (default: the classes of an existing --out, else the four default ones)."""

    served: str | None = None
    """Store of served images (serve.py --keep). Those with a class in --decisions are copied to the
    folder OUT-served, which is then prepared as well; the others are left out."""

    out: Path | None = None
    """Folder of the data set; an existing one is updated, and its images stay in their splits."""

    dry_run: bool = False
    """Show what would be done, and write no data set."""

    decisions: Path | None = None
    """Decisions to add to the ledger: the file decisions-....jsonl that the page of review.py
    exports to the browser's download folder."""

    bins: bool = False
    """Also pack each image at the bin of its own size (224 to 3584 px), for the preset multires;
    takes up to 38 MB per image. A data set that has bins keeps them."""

    rescan: bool = False
    """Read every file again, also those that have not changed since the last scan."""

    undo: bool = False
    """Restore the version of --out before this one; its raw files must still exist."""

    diff: tuple[str, str] | None = None
    """Show what differs between two data sets; FOLDER@FINGERPRINT is an earlier version."""

    def __post_init__(self) -> None:
        if self.diff is not None:
            if self.raw or self.negatives or self.classes or self.out or self.undo:
                raise ConfigError("--diff compares two data sets and takes no other flags.")
            return
        if self.out is None:
            raise ConfigError("--out is missing: name the folder of the data set.")
        given = (
            *(self.raw, self.negatives, self.served, self.classes, self.decisions),
            *(self.dry_run, self.bins, self.rescan),
        )
        if self.undo and any(given):
            raise ConfigError("--undo takes --out alone: the data set knows its raw folders.")
        if not self.undo and not self.raw:
            raise ConfigError("--raw is missing: name the folders with the collected images.")
        if self.served is not None and self.decisions is None:
            raise ConfigError(
                "--served needs --decisions: only they tell the classes of served images. Make "
                "them with the page of python ray_jobs/review.py."
            )
        for name in (*self.raw, *self.negatives):
            # The manifest names them, for --undo and later updates.
            if "://" in name and redact(name) != name:
                flag = "--raw" if name in self.raw else "--negatives"
                raise ConfigError(
                    f"{flag} {name} holds credentials, which the data set would record. Set them "
                    f"in the environment instead, such as AWS_ACCESS_KEY_ID and "
                    f"AWS_SECRET_ACCESS_KEY."
                )


@dataclass(frozen=True, kw_only=True)
class ReviewRequest:
    """Arguments of writing a review page."""

    data: str | None = None
    """Data set written by prepare.py: a folder or a URI. With --served, its images, their near
    duplicates and what was decided on before are left out."""

    served: str | None = None
    """Store of served images to review in place of a data set: the folder or URI that serve.py
    --keep fills. The most informative images come first."""

    model: str | None = None
    """Registered model that ranks served images, such as models:/drone-classifier@champion."""

    run: str | None = None
    """Run whose model ranks served images, in place of --model."""

    onnx: Path | None = None
    """Exported model that ranks served images, in place of --model."""

    candidate: str | None = None
    """Second model for served images: a registered model, a run or an exported file. Images that
    the two disagree on come first."""

    experiment: str = "drone"
    """Experiment in MLflow."""

    out: Path = Path("review.html")
    """The page; of a data set, a table of the suspects is written beside it."""

    weights: str
    """Weights of the features: imagenet (downloaded once) or a file; DRONE_WEIGHTS sets another
    default."""

    max_suspects: int = 500
    """Maximum number of suspect labels on the page, the most suspect first; or of served images,
    the most informative first."""

    def __post_init__(self) -> None:
        if self.data is None and self.served is None:
            raise ConfigError("Name what to review: --data DATASET or --served STORE.")
        models = sum(source is not None for source in (self.model, self.run, self.onnx))
        if self.served is not None and models != 1:
            raise ConfigError(
                "Name what ranks the served images: one of --model URI, --run RUN, --onnx FILE."
            )
        if self.served is None and (models or self.candidate):
            raise ConfigError("--model, --run, --onnx and --candidate need --served.")
        if self.max_suspects < 0:
            raise ConfigError(f"--max-suspects is {self.max_suspects}; it must be 0 or more.")
        if self.weights == "none" and self.served is None:
            raise ConfigError(
                "--weights is none: random weights give no features. Name imagenet or a file."
            )
        if self.out.suffix not in (".html", ".htm"):
            raise ConfigError(f"--out is {self.out}; it must end in .html.")


@dataclass(frozen=True, kw_only=True)
class CollectRequest:
    """Arguments of collecting images."""

    out: Path
    """Raw folder with one subfolder per class; an existing collection is added to."""

    classes: tuple[str, ...] = ()
    """Names of the classes, or a YAML file with them, as for prepare.py (default: the four default
    classes)."""

    negatives: bool = False
    """Collect images that show none of the classes, such as planes or empty sky, in one subfolder
    per kind, for prepare.py --negatives."""

    table: tuple[Path, ...] = ()
    """CSV or parquet files with the columns url, class (a kind with --negatives), source and
    licence."""

    search: tuple[Literal["openverse", "commons"], ...] = ()
    """Public searches that return URLs with their licences."""

    query: tuple[str, ...] = ()
    """What to search for, as "CLASS=TERMS", or as "KIND=TERMS" with --negatives; nothing else is
    searched for (default: built-in queries for the four default classes, the names of other
    classes, or built-in queries for eleven kinds of negatives)."""

    retry_failed: bool = False
    """Retry the URLs that failed in an earlier run."""

    dry_run: bool = False
    """Show what would be fetched, by host and class, and write nothing."""

    def __post_init__(self) -> None:
        if not self.table and not self.search:
            raise ConfigError("Name a source: --table FILE, or --search openverse commons.")
        if self.query and not self.search:
            raise ConfigError("--query needs --search: name openverse, commons or both.")


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """Arguments of an evaluation."""

    run: str | None = None
    """Run whose model is evaluated, by id or name (the newest with that name)."""

    model: str | None = None
    """Registered model to evaluate in place of --run, such as
    models:/drone-classifier@champion."""

    data: str | None = None
    """Data set whose test split is used (default: the one that the run was trained on)."""

    images: Path | None = None
    """Folder of class folders to evaluate on, in place of a test split; images that the model was
    trained on, and their near duplicates, are left out."""

    negatives: tuple[str, ...] = ()
    """Folders, zip archives or URIs of images that show none of the classes, each with one
    subfolder per kind (default: the negatives of the test split); those that the model was trained
    on are left out."""

    served: str | None = None
    """Store of served images (serve.py --keep): how often their answers were right, by week, as far
    as they have been labelled since in --data. Needs no model."""

    boxes: Path | None = None
    """Boxes around the objects in these images (CSV, YOLO or COCO): the report tells how much of
    the evidence for the true class lies outside of them."""

    against: str | None = None
    """Run of a model for 224 px (such as preset finetune) to compare a multi-resolution model with,
    image by image."""

    conditions: bool = True
    """Also evaluate a sample of at most 200 images that are made small, blurred, noisy, dark and so
    on."""

    name: str = "drone-classifier"
    """Registered model whose champion is shown beside, under the same conditions."""

    out: Path = Path("reports")
    """Folder for the report."""

    experiment: str = "drone"
    """Experiment in MLflow."""

    def __post_init__(self) -> None:
        if self.served is not None:
            if self.data is None or self.run or self.model or self.images:
                raise ConfigError(
                    "--served takes --data, the data set with the labels, and no model: it "
                    "evaluates the answers that were given."
                )
            return
        if (self.run is None) == (self.model is None):
            raise ConfigError("Name what to evaluate: either --run RUN or --model URI.")
        if self.data is not None and self.images is not None:
            raise ConfigError("--data and --images exclude each other.")


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """Arguments of an export."""

    model: str | None = None
    """Registered model, such as models:/drone-classifier@champion."""

    run: str | None = None
    """Run whose model is exported, in place of --model."""

    out: Path
    """Folder for model.onnx, model.json and export.json."""

    page: Path | None = None
    """Folder for the page with the model in it, ready to be put on a web server."""

    data: str | None = None
    """Data set that the model was trained on, if it has moved."""

    unsure_below: float | None = None
    """Probability of the best class below which a prediction is unsure (default: selected on images
    that the model was not trained on)."""

    known_above: float | None = None
    """Known score below which the label is "none of these" (default: 0.5, which 95 % of validation
    images reach)."""

    alarm_recall: float | None = None
    """Share of the drones that have to raise an alarm: the threshold is selected on validation
    images (default: the model has no alarm)."""

    alarm_above: float | None = None
    """Probability of a drone, of any class, from which an image raises an alarm, in place of
    --alarm-recall."""

    unchecked: bool = False
    """Export although the trained weights to compare with are gone."""

    int8: bool = False
    """Try quantization to 8-bit integers."""

    experiment: str = "drone"
    """Experiment in MLflow."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.run is None):
            raise ConfigError("Name what to export: either --model URI or --run RUN.")
        if self.alarm_recall is not None and self.alarm_above is not None:
            raise ConfigError("--alarm-recall and --alarm-above exclude each other.")
        if self.alarm_recall is not None and not 0 < self.alarm_recall <= 1:
            raise ConfigError(
                f"--alarm-recall is {self.alarm_recall}; it must be above 0 and at most 1."
            )
        for name in ("unsure_below", "known_above", "alarm_above"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{flag} is {value}; it must be 0 to 1.")
        for option, folder in (("--out", self.out), ("--page", self.page)):
            if folder is not None:
                _check_no_file(option, folder)


def _check_no_file(option: str, folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{option} is {folder}, which is a file; name a folder.")


PAGE_FOLDER = ROOT / "web"


@dataclass(frozen=True, kw_only=True)
class ServeRequest:
    """Arguments of serving a model."""

    model: str | None = None
    """Registered model, such as models:/drone-classifier@champion."""

    run: str | None = None
    """Run whose model is served, in place of --model."""

    onnx: Path | None = None
    """Exported model to serve, in place of --model."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all addresses of this machine. One that other machines
    reach needs --api-key-file or --open-to-all."""

    port: int = 8000
    """Port to listen on; 0 for any that is free."""

    page: Path | None = PAGE_FOLDER
    """Folder of the page that is served beside the HTTP API."""

    open: bool = False
    """Open the page in this machine's browser."""

    experiment: str = "drone"
    """Experiment in MLflow."""

    def __post_init__(self) -> None:
        if sum(source is not None for source in (self.model, self.run, self.onnx)) != 1:
            raise ConfigError("Name what to serve: one of --model URI, --run RUN, --onnx FILE.")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"--port is {self.port}; it must be 0 to 65535.")
        # The project's own page may be absent, as where only the jobs were copied to.
        if self.page not in (None, PAGE_FOLDER) and not self.page.is_dir():
            raise ConfigError(f"There is no folder {self.page} for --page.")


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """Arguments of predicting images."""

    model: str | None = None
    """Registered model, such as models:/drone-classifier@champion."""

    run: str | None = None
    """Run whose model predicts, in place of --model."""

    onnx: Path | None = None
    """Exported model that predicts, in place of --model."""

    images: tuple[str, ...]
    """Folders, zip archives, image files, globs or URIs (s3://...); they are only read."""

    out: Path
    """Folder for the predictions; running the same command again continues an interrupted
    prediction, and adds new images."""

    boxes: Path | None = None
    """Boxes to classify in the images or clips: a CSV (path,x,y,w,h and maybe track and frame),
    YOLO or COCO file, or a folder of YOLO files. Files without a box are left out."""

    margin: float = 0.35
    """Margin around boxes, as a share of their longer side."""

    discount: float = 0.5
    """Share of what the surroundings of a box say of bird and drone by themselves that is
    subtracted from its prediction, 0 to 1; 0 takes half the time."""

    every_s: float | None = None
    """Seconds from one frame of a clip to the next, 0 for all (default: 0.5; with --boxes all
    frames that have some)."""

    sort: Literal["link", "copy"] | None = None
    """Also lay the images out in one folder per class below --out: as links or as copies."""

    ray_from: int = 20_000
    """Number of images from which Ray spreads the work over processes and machines; fewer are
    predicted in threads of this process, which starts at once."""

    experiment: str = "drone"
    """Experiment in MLflow."""

    def __post_init__(self) -> None:
        if sum(source is not None for source in (self.model, self.run, self.onnx)) != 1:
            raise ConfigError("Name what predicts: one of --model URI, --run RUN, --onnx FILE.")
        if not self.images:
            raise ConfigError("--images is missing: name folders, archives, files or URIs.")
        for name in ("every_s", "margin"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1000:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{flag} is {value}; it must be 0 to 1000.")
        if not 0 <= self.discount <= 1:
            raise ConfigError(f"--discount is {self.discount}; it must be 0 to 1.")
        if self.ray_from < 0:
            raise ConfigError(f"--ray-from is {self.ray_from}; it must be 0 or more.")
        _check_no_file("--out", self.out)
        for name in self.images:
            # The tables name them.
            if "://" in name and redact(name) != name:
                raise ConfigError(
                    f"--images {name} holds credentials, which the tables would record. Set them "
                    f"in the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
                )


@dataclass(frozen=True, kw_only=True)
class DemoRequest:
    """Arguments of the demonstration."""

    raw: Path | None = None
    """Folder with one subfolder per class (default: synthetic images are generated)."""

    weights: str
    """Starting weights: imagenet (downloaded once; random if that fails), none (random) or a
    file."""

    out: Path = Path("demo")
    """Folder for the images, the data set, the checkpoints, the reports and the export."""

    images_per_class: int | None = None
    """Number of images to generate per class (default: 150, or 450 from random weights)."""

    epochs: int | None = None
    """Number of epochs of each run (default: 4, or 24 from random weights)."""

    seed: int = 0
    """Seed of the synthetic images and of the runs."""

    def __post_init__(self) -> None:
        for name, minimum in (("images_per_class", 4), ("epochs", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < minimum:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} is {value}; it must be at least {minimum}.")
