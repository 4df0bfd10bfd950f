"""What runs and studies have recorded by absolute path, in a project that was moved or copied."""

from collections.abc import Callable
from pathlib import Path

from drone.data.dataset import Dataset, is_dataset
from drone.errors import DataError
from drone.storage import dataset_cache
from drone.tracking import runs


def present_place(location: str, home: str) -> str:
    """Returns where a location is now, if it lay in the folder of the tracking store.

    Args:
        location: Absolute path or URI, as it was recorded.
        home: Folder of the store when that was recorded; empty if it was none of this machine.
    """
    now = runs.store_folder()
    if not home or now is None or "://" in location or not Path(location).is_relative_to(home):
        return location
    return str(now / Path(location).relative_to(home))


def present_input(location: str, home: str) -> str:
    """Returns the same of what is only read: the old place, if that alone has it."""
    now = present_place(location, home)
    return location if not Path(now).exists() and Path(location).exists() else now


def open_recorded(
    location: str,
    owner: str,
    advice: str,
    notify: Callable[[str], None] = lambda sentence: None,
    *,
    at_bins: bool = False,
) -> Dataset:
    """Opens the data set that a run or a study was started on.

    Args:
        location: Where it was then.
        owner: The run or study, for the error message.
        advice: Command that names another place.
        notify: Called with a message before a copy, which may take a while.
        at_bins: Whether the images are read at the sides of their bins.

    Raises:
        DataError: It is not there any more, or it is damaged.
    """
    if "://" not in location and not is_dataset(Path(location)):
        raise DataError(
            f"The data set of {owner} is no longer in {location}. Name the folder that it has "
            f"moved to: {advice}"
        )
    return dataset_cache.open_at(location, notify=notify, at_bins=at_bins)
