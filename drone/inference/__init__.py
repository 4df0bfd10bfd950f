"""Predictions of many images: what is listed, what is answered, what is kept and how it is shown.

items: `Item` is the unit of work: an image, or a frame of a clip or a box in an image.
listing: `list_items` finds the items in folders, archives, globs and URIs.
rows: `predict_rows` reads items and gives a `Row` for each; `to_table` makes a table of them.
frame: `predict_frame` gives a pandas frame of the predictions of some images.
parts: `Parts` keeps finished rows in files, so that a run that was killed resumes.
results: the table of all predictions, as parquet and CSV.
contact_sheet: the page that shows the images by class and confidence.
class_folders: lays the images out in one folder per class.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
