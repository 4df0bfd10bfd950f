"""Classifies many images and clips: what is between files and an exported model's answers.

clips: `frames` yields the frames of a clip or of a folder of numbered images; `is_clip`.
box_files: `read_boxes` reads boxes from CSV, YOLO and COCO files.
boxes: `Box`; `assign_boxes` finds the boxes of each file, `tracks_of` those of each object, `crop`
    cuts the square that the model sees.
consensus: `find_consensus` makes one answer of those for the frames of a clip or a track.
plots: `answers_over_time` plots them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
