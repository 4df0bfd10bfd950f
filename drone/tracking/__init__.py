"""MLflow: runs, studies, models and the registry; the only importer of it.

runs         runs and their metrics, written by one process
sqlite_store a store in a file: created whole, checked, migrated, moved with its artifacts
history      metrics of a run by epoch
artifacts    files of runs, as they were logged
study_runs   a study: a parent run, and a child run per trial
model        models in MLflow: ONNX with the preprocessing inside
registry     registered models, and the aliases `champion` and `previous`
server       a tracking server for a cluster, with a store that outlives the machine
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
