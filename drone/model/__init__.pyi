from .config import ModelConfig as ModelConfig
from .export import to_onnx as to_onnx
from .mobilenet import Classifier as Classifier
from .mobilenet import build as build
from .quantization import to_int8 as to_int8
from .resizer import Resizer as Resizer
from .weights import Weights as Weights

__all__ = [
    "Classifier",
    "ModelConfig",
    "Resizer",
    "Weights",
    "build",
    "to_int8",
    "to_onnx",
]
