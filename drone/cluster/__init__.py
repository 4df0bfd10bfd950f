"""Everything that runs on Ray, and the only importer of it.

connection       connects to a local Ray or to the cluster that RAY_ADDRESS names
startup          starts Ray and a first worker, or says what keeps them from starting
train            a training run on Ray Train, with any number of workers
tune, trial      the trials of a search on Ray Tune
data             maps files over all processors with Ray Data
serve            replicas of a model on Ray Serve
doctor           checks every machine of a cluster before a job relies on it
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
