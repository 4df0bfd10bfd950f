from .drawing import draw as draw
from .raw_folder import GroundTruth as GroundTruth
from .raw_folder import SynthSettings as SynthSettings
from .raw_folder import write_raw_folder as write_raw_folder

__all__ = [
    "GroundTruth",
    "SynthSettings",
    "draw",
    "write_raw_folder",
]
