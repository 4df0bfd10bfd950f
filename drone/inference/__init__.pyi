from .box_files import read_boxes as read_boxes
from .boxes import Box as Box
from .boxes import assign_boxes as assign_boxes
from .boxes import crop as crop
from .boxes import tracks_of as tracks_of
from .clips import Frame as Frame
from .clips import frames as frames
from .clips import is_clip as is_clip
from .clips import numbered_images as numbered_images
from .consensus import Agreement as Agreement
from .consensus import Consensus as Consensus
from .consensus import Timeline as Timeline
from .consensus import find_consensus as find_consensus
from .frame import predict_frame as predict_frame
from .items import Item as Item
from .listing import list_items as list_items
from .plots import answers_over_time as answers_over_time
from .prediction import predict_rows as predict_rows
from .rows import Row as Row

__all__ = [
    "Agreement",
    "Box",
    "Consensus",
    "Frame",
    "Item",
    "Row",
    "Timeline",
    "answers_over_time",
    "assign_boxes",
    "crop",
    "find_consensus",
    "frames",
    "is_clip",
    "list_items",
    "numbered_images",
    "predict_frame",
    "predict_rows",
    "read_boxes",
    "tracks_of",
]
