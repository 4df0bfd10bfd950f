"""Evaluation of models: predictions, metrics, the report and the promotion gate.

- `batch_inference.predict_in_batches`: Predicts many images, batch by batch.
- `metrics.score`: Accuracy, macro F1, calibration error and confusion matrix of `Predictions`.
- `report.write`: The HTML report with its figures and tables.
- `mixed_resolution.compare`: Multi-resolution inference against 224 px, paired.
- `operating_point.find_operating_point`: Drones that raise an alarm, and false alarms.
- `unseen.load_unseen`: Images of a folder that a model was not trained on.
- `parity.measure`: The exported model against the trained one.
- `calibration.calibrate`: Temperature and unsure threshold.
- `latency.measure_latency_ms`: Median time of one prediction.
- `gate.apply_gate`: Whether a candidate may replace the champion, within `limits.Limits`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
