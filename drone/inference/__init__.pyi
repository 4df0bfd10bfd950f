from .frame import predict_frame as predict_frame
from .items import Item as Item
from .listing import list_items as list_items
from .rows import Row as Row
from .rows import predict_rows as predict_rows

__all__ = [
    "Item",
    "Row",
    "list_items",
    "predict_frame",
    "predict_rows",
]
