"""Messages, tables and progress of the jobs on the terminal."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from drone.names import printable
from drone.redaction import redact
from drone.training.best_epoch import BestEpochBy, History, best_epoch

if TYPE_CHECKING:  # They import torch, which --help must not wait for.
    from drone.search.study import TrialRecord
    from drone.training.context import Progress as StepProgress

# Names may look like markup ("[/x]"), emoji codes (":x:") or what the highlighter colours.
console = Console(markup=False, emoji=False, highlight=False)
"""Console for messages to the user; with --json it writes to standard error."""


def show(*lines: str) -> None:
    """Prints lines; a line break within one of them belongs to a name, and is escaped."""
    for line in lines:
        console.print(printable(redact(line)), soft_wrap=True)


def warn(*lines: str) -> None:
    """Prints lines as a warning."""
    for line in lines:
        console.print(printable(redact(line)), style="bold yellow", soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table: the first column left-aligned, the others right."""
    grid = Table(title=printable(title), title_justify="left")
    for number, column in enumerate(columns):
        grid.add_column(printable(column), justify="right" if number else "left")
    for row in rows:
        grid.add_row(*(_cell(value) for value in row))
    console.print(grid)


def _cell(value: object) -> Text:
    if isinstance(value, Text):
        return value
    return Text(f"{value:.4f}" if isinstance(value, float) else printable(redact(str(value))))


class ConsoleDisplay:
    """A `drone.workflows.display.Display` on the terminal."""

    def show(self, *lines: str) -> None:
        """Prints a message."""
        show(*lines)

    def warn(self, *lines: str) -> None:
        """Prints a warning."""
        warn(*lines)

    def track(self, items: Iterable[int], label: str, total: int) -> Iterable[int]:
        """Passes the items on and shows a progress bar."""
        columns = (_text("description"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
            yield from progress.track(items, total, description=printable(label))

    @contextlib.contextmanager
    def counting(self, total: int, num_before: int) -> Iterator["CountingDisplay"]:
        """Shows images being done: a bar, or a line now and then where there is no terminal."""
        with _bar() as bar:
            yield CountingDisplay(bar, total, num_before)

    @contextlib.contextmanager
    def training(
        self, epochs: int, history: History, best_epoch_by: BestEpochBy
    ) -> Iterator["TrainingDisplay"]:
        """Shows a run: a bar for the epoch and a line per epoch that ended."""
        with _bar() as bar:
            yield TrainingDisplay(bar, epochs, len(history), best_epoch_by)

    @contextlib.contextmanager
    def search(self) -> Iterator["SearchDisplay"]:
        """Shows a search: a bar for the study and a line per trial that ended."""
        with _bar() as bar:
            yield SearchDisplay(bar)


def _text(field: str) -> TextColumn:
    # These columns read markup by default, whatever the console does.
    return TextColumn(f"{{task.{field}}}", markup=False)


def _bar() -> Progress:
    """Returns a bar that disappears when the work is done; invisible without a terminal."""
    return Progress(
        _text("description"),
        BarColumn(bar_width=24),
        _text("fields[note]"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


class CountingDisplay:
    """Shows images being done."""

    def __init__(self, bar: Progress, total: int, num_before: int) -> None:
        self._bar, self._total = bar, total
        self._num_before = self._num_done = num_before
        self._task = bar.add_task("images", total=total, completed=num_before, note="")
        self._start_s = time.monotonic()
        self._shown_s, self._interval_s = self._start_s, 0.2 if console.is_terminal else 30.0

    def advance(self, *, is_last: bool = True) -> None:
        """Counts one image, and shows the count now and then."""
        self._num_done += 1
        # How many frames or boxes a file has is not known before its end.
        self._total += not is_last
        now_s = time.monotonic()
        if now_s - self._shown_s < self._interval_s:
            return
        self._shown_s = now_s
        # Of this run alone: those that were done before took no time now.
        speed = (self._num_done - self._num_before) / (now_s - self._start_s)
        note = (
            f"{self._num_done} of {self._total}, {speed:.0f} images/s, "
            f"{_duration((self._total - self._num_done) / speed)} left"
        )
        self._bar.update(self._task, completed=self._num_done, total=self._total, note=note)
        if not console.is_terminal:
            show(note)


class TrainingDisplay:
    """Shows a run while it trains."""

    def __init__(
        self, bar: Progress, epochs: int, num_shown: int, best_epoch_by: BestEpochBy
    ) -> None:
        self._bar, self._epochs, self._num_shown = bar, epochs, num_shown
        self._best_epoch_by = best_epoch_by
        self._task = bar.add_task("starting", total=None, note="")

    def step(self, progress: "StepProgress") -> None:
        """Advances the bar."""
        steps_left = progress.steps - progress.step
        steps_left += (progress.epochs - progress.epoch) * progress.steps
        # The first report of an attempt may have no speed yet.
        seconds = steps_left * progress.batch_size / max(progress.images_per_s, 1e-9)
        self._bar.update(
            self._task,
            description=f"epoch {progress.epoch}/{progress.epochs}",
            total=progress.steps,
            completed=progress.step,
            note=f"{progress.images_per_s:.0f} images/s, {_duration(seconds)} left",
        )

    def epochs(self, history: History) -> None:
        """Prints the epochs that are new."""
        # The history has the epochs of earlier attempts too, which were printed then.
        for number in range(self._num_shown, len(history)):
            entry, metrics = history[number], history[number]["metrics"]
            seconds = metrics["speed/epoch_s"] * (self._epochs - entry["epoch"])
            show(
                f"epoch {entry['epoch']:>3}/{self._epochs}"
                f"  loss {metrics['train/loss']:.3f}"
                f"{self._on_validation(history[: number + 1])}"
                f"  {metrics['speed/images_per_s']:.0f} images/s"
                f"  {_duration(seconds)} left"
            )
        self._num_shown = max(self._num_shown, len(history))

    def _on_validation(self, history: History) -> str:
        """Returns the figures on validation of the last epoch; empty if no images are held out."""
        metrics = history[-1]["metrics"]
        if "validation/loss" not in metrics:
            return ""
        return (
            f"  validation loss {metrics['validation/loss']:.3f}"
            f"  accuracy {metrics['validation/accuracy']:.3f}"
            f"  macro F1 {metrics['validation/macro_f1']:.3f}"
            f"  (best epoch {best_epoch(history, self._best_epoch_by)['epoch']})"
        )


def _score(record: "TrialRecord") -> str:
    """Returns a trial's score as text, with all that was measured once it has ended."""
    metrics = record.metrics
    if not metrics:
        return "no epoch" if record.score is None else f"score {record.score:.4f}"
    return (
        f"log-loss {metrics['log_loss']:.4f}  accuracy {metrics['accuracy']:.3f}  "
        f"macro F1 {metrics['macro_f1']:.3f}"
    )


class SearchDisplay:
    """Shows a search while its trials run."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=None, note="")
        self._records: dict[int, TrialRecord] = {}
        self._ended: set[int] = set()
        self._waited: set[int] = set()
        self._cache_reasons: set[str] = set()
        self._title, self._total = "trial", 0
        self._start_s, self._num_earlier = time.monotonic(), 0

    def start(self, title: str, total: int, records: "list[TrialRecord]", concurrency: int) -> None:
        """Prints that a part of the study starts."""
        self._title, self._total = title, total
        self._records = {record.number: record for record in records if record.has_ended}
        self._ended = set(self._records)
        self._waited = {record.number for record in records if record.state == "waiting"}
        # The time left is estimated from this attempt alone, so earlier trials are not counted.
        self._start_s = time.monotonic()
        self._num_earlier = len(self._ended | self._waited)
        earlier = f", {len(self._ended)} done before" if self._ended else ""
        show(f"{total} {title}s, {concurrency} at a time{earlier}")
        self._update()

    def trial(self, record: "TrialRecord", name: str) -> None:
        """Updates the bar for a trial, and prints a line if it has ended."""
        self._records[record.number] = record
        if record.cache_reason and record.cache_reason not in self._cache_reasons:
            # Once for each reason: most trials have the same.
            self._cache_reasons.add(record.cache_reason)
            show(f"  a trial like {name} {record.cache_reason}")
        told = self._ended if record.has_ended else self._waited
        if record.state != "running" and record.number not in told:
            told.add(record.number)
            seconds = record.usage.get("resource/wall_s", 0.0)
            reason = f"  {record.reason}" if record.reason else ""
            folds = record.history[-1]["fold"] + 1 if record.history else 0
            show(
                f"{self._title} {record.number:>4}  {name:<26} {record.state:<8} "
                f"{_score(record)}  {folds} of {record.num_folds} folds, {seconds:.0f} s  "
                f"({self._status()}){reason}"
            )
        self._update()

    def message(self, text: str) -> None:
        """Prints a line about the search as a whole."""
        show(text)

    def _status(self) -> str:
        records = self._records.values()
        states = [record.state for record in records]
        counts = [
            f"{states.count(state)} {state}"
            for state in ("running", "waiting", "pruned")
            if state != "waiting" or "waiting" in states
        ]
        return (
            f"{len(self._ended)}/{self._total} done, {', '.join(counts)}, {self._time_left()} left"
        )

    def _time_left(self) -> str:
        scored = len(self._ended | self._waited)
        num_done = scored - self._num_earlier
        if not num_done:
            return "?"
        # By the clock, not by the trials' own times: they run concurrently.
        per_trial_s = (time.monotonic() - self._start_s) / num_done
        # How many of those that wait will get more folds is not known before they are compared.
        prefix = "at least " if self._waited - self._ended else ""
        return f"{prefix}{_duration(per_trial_s * (self._total - scored))}"

    def _update(self) -> None:
        self._bar.update(
            self._task,
            description=f"{self._title}s",
            total=self._total,
            completed=len(self._ended),
            note=self._status(),
        )
