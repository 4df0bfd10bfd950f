from .batches import Batches as Batches
from .batches import DeviceSplit as DeviceSplit
from .dataset import Dataset as Dataset
from .dataset import Split as Split
from .dataset import open_dataset as open_dataset
from .images import Negatives as Negatives

__all__ = [
    "Batches",
    "Dataset",
    "DeviceSplit",
    "Negatives",
    "Split",
    "open_dataset",
]
