"""The interface by which workflows show messages, and the progress of long work."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # They import torch and pandas, which a server of an exported model must not.
    from drone.search.study import TrialRecord
    from drone.training.best_epoch import BestEpochBy, History
    from drone.training.context import Progress


class TrainingProgress(Protocol):
    """Shows a run while it trains."""

    def step(self, progress: "Progress") -> None:
        """A step has ended."""

    def epochs(self, history: "History") -> None:
        """An epoch has ended; all so far."""


class SearchProgress(Protocol):
    """Shows a search while its trials run."""

    def start(self, title: str, total: int, records: "list[TrialRecord]", concurrency: int) -> None:
        """A part of the study starts.

        Args:
            title: "trial" or "confirmation run".
            total: Number of trials.
            records: Trials of earlier attempts.
            concurrency: Maximum number of trials at the same time.
        """

    def trial(self, record: "TrialRecord", name: str) -> None:
        """A trial has started, has a new epoch or has ended."""

    def message(self, text: str) -> None:
        """Something about the search as a whole."""


class Counting(Protocol):
    """Shows how far a long count of images is."""

    def advance(self, *, is_last: bool = True) -> None:
        """One more image is done, or a frame or a box of a file of which it is not the last."""


class Display(Protocol):
    """Shows messages and progress of a workflow."""

    def show(self, *lines: str) -> None:
        """Shows a message; a line break within a line belongs to a name, and is escaped."""

    def warn(self, *lines: str) -> None:
        """Shows a warning."""

    def track(self, items: Iterable[int], label: str, total: int) -> Iterable[int]:
        """Passes the items on and shows how many of them are done."""

    def counting(self, total: int, num_before: int) -> AbstractContextManager[Counting]:
        """Shows images being done, with their speed and the time left.

        Args:
            total: Number of images.
            num_before: Those that were done by an earlier run.
        """

    def training(
        self, epochs: int, history: "History", best_epoch_by: "BestEpochBy"
    ) -> AbstractContextManager[TrainingProgress]:
        """Shows a run.

        Args:
            epochs: Epochs of the whole run.
            history: Epochs of earlier attempts.
            best_epoch_by: The metric that selects the best epoch.
        """

    def search(self) -> AbstractContextManager[SearchProgress]:
        """Shows a search."""


class SilentDisplay:
    """Shows nothing: for use from Python."""

    def show(self, *lines: str) -> None:
        """Does nothing."""

    def warn(self, *lines: str) -> None:
        """Does nothing."""

    def track(self, items: Iterable[int], label: str, total: int) -> Iterable[int]:
        """Passes the items on."""
        return items

    def counting(self, total: int, num_before: int) -> AbstractContextManager[Counting]:
        """Shows nothing."""
        return nullcontext(_SilentProgress())

    def training(
        self, epochs: int, history: "History", best_epoch_by: "BestEpochBy"
    ) -> AbstractContextManager[TrainingProgress]:
        """Shows nothing."""
        return nullcontext(_SilentProgress())

    def search(self) -> AbstractContextManager[SearchProgress]:
        """Shows nothing."""
        return nullcontext(_SilentProgress())


class _SilentProgress:
    def advance(self, *, is_last: bool = True) -> None:
        """Does nothing."""

    def step(self, progress: "Progress") -> None:
        """Does nothing."""

    def epochs(self, history: "History") -> None:
        """Does nothing."""

    def start(self, title: str, total: int, records: "list[TrialRecord]", concurrency: int) -> None:
        """Does nothing."""

    def trial(self, record: "TrialRecord", name: str) -> None:
        """Does nothing."""

    def message(self, text: str) -> None:
        """Does nothing."""


SILENT = SilentDisplay()
