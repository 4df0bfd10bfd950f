from .history import diff as diff
from .history import open_version as open_version
from .plan import PreparePlan as PreparePlan
from .plan import PrepareSettings as PrepareSettings
from .plan import map_sequentially as map_sequentially
from .plan import plan_dataset as plan_dataset
from .write import undo_last as undo_last
from .write import write_dataset as write_dataset

__all__ = [
    "PreparePlan",
    "PrepareSettings",
    "diff",
    "map_sequentially",
    "open_version",
    "plan_dataset",
    "undo_last",
    "write_dataset",
]
