"""Prepares a data set: from folders of collected images to packed, split pixels.

    raw folders -> scan -> verdicts -> groups and splits -> packed data set

`plan.plan_dataset` scans raw folders and decides on every file, without writing.
`write.write_dataset` packs what a plan keeps; `write.undo_last` restores the version before.
`plan.PrepareSettings` holds the settings, `plan.PreparePlan` the plan.
`ledger` records decisions on files, `history` keeps earlier versions and compares them.

Reading a prepared data set is the job of `drone.data.dataset`, which does not need this package.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
