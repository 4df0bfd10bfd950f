"""Synthetic data: drawings of the four classes, with known defects among the files.

drawing: `draw` draws an image of a class.
raw_folder: `write_raw_folder` writes a raw folder and returns its `GroundTruth`.
encoding: how drawings become files, the unusual and the damaged ones included.

A model that tells these drawings apart says nothing about real drones and birds: the drawings are
made to be learnt within minutes, for tests and for the demonstration.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
