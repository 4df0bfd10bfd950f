"""Access to data sets, checkpoints and raw images: local, in object storage, on the cluster's head.

filesystem       paths and URIs: opening, copying, testing for room and rights
checkpoints      saves, finds and removes the checkpoints of a run
head_files       files on the head of a cluster, for workers that share no disk with it
kept_images      the store of served images
dataset_cache    opens a data set from anywhere, with a local copy where it is far away
raw_roots        opens folders, archives and object storage with raw images
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
