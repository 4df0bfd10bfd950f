from .history import metric_history as metric_history
from .model import ModelRef as ModelRef
from .model import fetch_onnx as fetch_onnx
from .model import resolve_model as resolve_model
from .registry import register as register
from .runs import Run as Run
from .runs import TrackedRun as TrackedRun
from .runs import connect as connect
from .runs import find_run as find_run
from .study_runs import TrialRuns as TrialRuns

__all__ = [
    "ModelRef",
    "Run",
    "TrackedRun",
    "TrialRuns",
    "connect",
    "fetch_onnx",
    "find_run",
    "metric_history",
    "register",
    "resolve_model",
]
