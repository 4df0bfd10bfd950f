"""Why files are left out of a data set, in the order in which the reasons are checked."""

from typing import Literal

import pandas as pd

Policy = Literal["drop-all", "first", "majority", "seed"]
"""What happens to an image that lies in the folders of several classes.

drop-all: No copy is kept, since the label is unknown.
first: The copy whose path sorts first is kept.
majority: A copy of the class with the most copies is kept; on a tie, none.
seed: As in the original project, the copy of the first class is kept, and files whose names do
    not end in a known image suffix count as errors, whatever their content.
"""

EXTENSION = "extension"
WITHIN = "duplicate-within"
ACROSS = "duplicate-across"
BY_HAND = "by-hand"
"""The user dropped the image. Such decisions hold until another one or a retraction."""

NEAR = "near-duplicate"
BRIDGE = "joins-splits"
"""The near duplicates of a new file are in two splits already; see `split.assign_splits`."""

STEPS = (
    EXTENSION,
    "unreadable",
    "empty",
    "non-media",
    "undecodable",
    "unsupported",
    "too-small",
    "too-large",
    "blank",
    WITHIN,
    ACROSS,
    BY_HAND,
    NEAR,
    BRIDGE,
)
"""All reasons to leave a file out, in the order of the steps."""


def gets_split(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Returns which files get a split: the kept ones and those that only the user dropped.

    Dropping an image by hand must not move any other image to another split, so it keeps its
    place in its group and its split.
    """
    return frame["kept"] | (frame["reason"] == BY_HAND)
