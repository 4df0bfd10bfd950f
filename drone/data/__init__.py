"""Data sets: `data.prepare` makes one of raw images, the modules here read it for training.

`dataset`: `open_dataset` opens a prepared data set; `Dataset` and its `Split`s give the images.
`images`: what these have in common with `Negatives`, the images of none of the classes.
`batches`: which images a step takes (`Batches`), and their pixels on a device (`DeviceSplit`).
`augmentation`: random views of images, as pure functions of seed, epoch and image.
`bins`: the sizes that images of mixed resolutions are grouped by.
`pixels`, `warp`, `grouped_partition` and `embed` are used by those.

Nothing here imports `data.prepare`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
