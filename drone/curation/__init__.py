"""Curation of a data set: what is in it, which labels are suspect, and a page to correct them.

- `audit_page.write_audit`: Writes audit.html and the tables of `audit` into a data set's folder.
- `label_issues.find_in_dataset`: Ranks suspect labels by confident learning.
- `learning_curve.measure`: What more images or cleaner labels would add to the accuracy;
  `advice.sentences` says it in words.
- `review.build_items`, `review.write_page`: The review page; its exported decisions go into the
  ledger with `prepare.py --decisions`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
