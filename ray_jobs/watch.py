"""Shows a run to a person while it trains."""

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

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
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=cli.console,
            transient=True,
            disable=not cli.console.is_terminal,
        )
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


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
