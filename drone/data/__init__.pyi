from .batches import Batches as Batches
from .batches import DeviceSplit as DeviceSplit
from .dataset import Dataset as Dataset
from .dataset import Split as Split
from .dataset import open_dataset as open_dataset

__all__ = [
    "Batches",
    "Dataset",
    "DeviceSplit",
    "Split",
    "open_dataset",
]
