"""Shows a run to a person while it trains."""

import time

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from drone.search.study import TrialRecord
from drone.training.context import History
from drone.training.context import Progress as Where
from ray_jobs import cli


class Watch:
    """A bar for the epoch and a line for each that ended."""

    def __init__(self, epochs: int, known: History) -> None:
        """Begins to show.

        Args:
            epochs: of the whole run.
            known: the epochs that an earlier attempt has shown.
        """
        self.epochs = epochs
        self._shown = len(known)
        self._bar = _bar()
        self._task = self._bar.add_task("starting", total=None, note="")

    def __enter__(self) -> "Watch":
        """Shows the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Takes it away."""
        self._bar.stop()

    def progress(self, where: Where) -> None:
        """Moves the bar."""
        left = (where.steps - where.step) + (where.epochs - where.epoch) * where.steps
        seconds = left * where.batch_size / max(where.images_per_s, 1e-9)
        self._bar.update(
            self._task,
            description=f"epoch {where.epoch}/{where.epochs}",
            total=where.steps,
            completed=where.step,
            note=f"{where.images_per_s:.0f} images/s, {_minutes(seconds)} left",
        )

    def history(self, history: History) -> None:
        """Prints the epochs that are new."""
        for entry in history[self._shown :]:
            metrics = entry["metrics"]
            best = max(history[: entry["epoch"]], key=lambda e: e["metrics"]["validation/macro_f1"])
            left = metrics["speed/epoch_s"] * (self.epochs - entry["epoch"])
            cli.console.print(
                f"epoch {entry['epoch']:>3}/{self.epochs}"
                f"  loss {metrics['train/loss']:.3f}"
                f"  validation accuracy {metrics['validation/accuracy']:.3f}"
                f"  macro F1 {metrics['validation/macro_f1']:.3f}"
                f" (best {best['metrics']['validation/macro_f1']:.3f})"
                f"  {metrics['speed/images_per_s']:.0f} images/s"
                f"  {_minutes(left)} left",
                highlight=False,
                soft_wrap=True,
            )
        self._shown = max(self._shown, len(history))


def _bar() -> Progress:
    """What is shown while work lasts, and taken away after it; nothing without a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=cli.console,
        transient=True,
        disable=not cli.console.is_terminal,
    )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


class StudyWatch:
    """A line for each trial that ended, and a bar that says how far the study is."""

    def __init__(self) -> None:
        self._bar = _bar()
        self._task = self._bar.add_task("starting", total=None, note="")
        self._records: dict[int, TrialRecord] = {}
        self._shown: set[int] = set()
        self._begun: set[int] = set()
        self._reuse: set[str] = set()
        self._title, self._total = "trial", 0
        self._began, self._earlier = time.monotonic(), 0

    def __enter__(self) -> "StudyWatch":
        """Shows the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Takes it away."""
        self._bar.stop()

    def begin(self, title: str, total: int, records: list[TrialRecord], at_once: int) -> None:
        """A part of the study begins."""
        self._title, self._total = title, total
        self._records = {record.number: record for record in records}
        self._shown = {record.number for record in records if record.is_over}
        self._begun = set(self._shown)
        self._began, self._earlier = time.monotonic(), len(self._shown)
        known = f", {len(self._shown)} done before" if self._shown else ""
        cli.console.print(f"{total} {title}s, {at_once} at once{known}")
        self._update()

    def trial(self, record: TrialRecord, name: str) -> None:
        """A trial began, has a new epoch or is over."""
        self._records[record.number] = record
        self._begun.add(record.number)
        if record.reuse and record.reuse not in self._reuse:
            self._reuse.add(record.reuse)
            cli.console.print(f"  a trial like {name} {record.reuse}", highlight=False)
        if record.is_over and record.number not in self._shown:
            self._shown.add(record.number)
            epochs = len(record.history)
            seconds = record.usage.get("resource/wall_s", 0.0)
            note = f"  {record.reason}" if record.reason else ""
            cli.console.print(
                f"{self._title} {record.number:>4}  {name:<26} {record.state:<8} macro F1 "
                f"{record.objective:.4f}  {epochs} epochs, {seconds:.0f} s  ({self._standing()})"
                f"{note}",
                highlight=False,
                soft_wrap=True,
            )
        self._update()

    def _standing(self) -> str:
        states = [record.state for record in self._records.values()]
        best = max((record.objective for record in self._records.values()), default=0.0)
        return (
            f"{len(self._shown)}/{self._total} done, {len(self._begun - self._shown)} running, "
            f"{states.count('pruned')} pruned, best {best:.4f}, {self._left()} left"
        )

    def _left(self) -> str:
        done = len(self._shown) - self._earlier
        if not done:
            return "?"
        per_trial = (time.monotonic() - self._began) / done
        return _minutes(per_trial * (self._total - len(self._shown)))

    def _update(self) -> None:
        self._bar.update(
            self._task,
            description=f"{self._title}s",
            total=self._total,
            completed=len(self._shown),
            note=self._standing(),
        )
