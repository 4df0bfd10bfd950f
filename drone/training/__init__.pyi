from .config import OptimConfig as OptimConfig
from .config import TrainConfig as TrainConfig
from .context import Context as Context
from .context import LocalContext as LocalContext
from .data import TrainingData as TrainingData
from .loop import fit as fit

__all__ = [
    "Context",
    "LocalContext",
    "OptimConfig",
    "TrainConfig",
    "TrainingData",
    "fit",
]
