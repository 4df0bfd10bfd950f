"""Hyper-parameter search: what is searched, how trials are sampled, and what a study found.

Space, Choice, Range     which settings vary, and over which values
Study, StudySpec         a study's folder, and the spec that it was started with
TrialRecord              a trial with its epochs
Sampler                  suggests the next trial (Optuna; the only module that imports it)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
