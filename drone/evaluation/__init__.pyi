from .batch_inference import predict_in_batches as predict_in_batches
from .calibration import Calibration as Calibration
from .calibration import calibrate as calibrate
from .gate import GateDecision as GateDecision
from .gate import apply_gate as apply_gate
from .latency import measure_latency_ms as measure_latency_ms
from .limits import Limits as Limits
from .metrics import Predictions as Predictions
from .metrics import Scores as Scores
from .metrics import score as score
from .parity import Parity as Parity
from .unseen import Unseen as Unseen
from .unseen import load_unseen as load_unseen

__all__ = [
    "Calibration",
    "GateDecision",
    "Limits",
    "Parity",
    "Predictions",
    "Scores",
    "Unseen",
    "apply_gate",
    "calibrate",
    "load_unseen",
    "measure_latency_ms",
    "predict_in_batches",
    "score",
]
