"""The training loop and what it is made of; knows neither Ray nor MLflow.

TrainConfig        every setting that decides what a run computes
fit                trains a model, or resumes from the context's checkpoint
TrainingData       the training and validation images of a run
LocalContext       one process with checkpoints in a folder: the simplest surroundings
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
