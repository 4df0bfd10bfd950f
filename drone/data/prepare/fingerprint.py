"""What names a data set: a hash of all that decides the training data."""

import hashlib
import json
from typing import Any

import pandas as pd

from drone.labels import NONE


def fingerprint(frame: pd.DataFrame, settings: dict[str, Any]) -> str:
    """Returns the SHA-256, in hexadecimal, of all that decides the training data.

    Those are the settings (classes, preprocessing, policy, split) and the content, class, split
    and group of each kept image, and the kind of each kept negative. Locations and names of files
    do not count.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    kept = frame[frame["kept"]]
    kinds = kept["kind"].where(kept["class_name"] == NONE, "")
    rows = kept[["md5", "class_name", "split", "group"]].assign(kind=kinds)
    # Sorted by content, since the order of the manifest is that of the file names.
    for row in sorted(rows.itertuples(index=False, name=None)):
        # Without the empty kind of classes, which adding negatives to others must not change.
        digest.update("\t".join(filter(None, row)).encode() + b"\n")
    return digest.hexdigest()
