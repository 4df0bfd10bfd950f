"""Classifies many images and clips: what is between files and an exported model's answers.

items: `Item` is the unit of work: an image, or a frame of a clip or a box in an image.
listing: `list_items` finds the items in folders, archives, globs and URIs.
rows: `predict_rows` reads items and gives a `Row` for each; `to_table` makes a table of them.
frame: `predict_frame` gives a pandas frame of the predictions of some images.
parts: `Parts` keeps finished rows in files, so that a run that was killed resumes.
results: the table of all predictions, as parquet and CSV.
contact_sheet: the page that shows the images by class and confidence.
class_folders: lays the images out in one folder per class.

clips: `frames` yields the frames of a clip or of a folder of numbered images; `is_clip`.
box_files: `read_boxes` reads boxes from CSV, YOLO and COCO files.
boxes: `Box`; `assign_boxes` finds the boxes of each file, `tracks_of` those of each object, `crop`
    cuts the square that the model sees.
consensus: `find_consensus` makes one answer of those for the frames of a clip or a track.
plots: `answers_over_time` plots them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
