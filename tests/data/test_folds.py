"""Folds of groups of near duplicates."""

import numpy as np
import pandas as pd
import pytest

from drone.data.grouped_partition import assign_folds

CLASSES = ("a", "b", "c", "d")


@pytest.mark.parametrize("num_groups", [2, 3, 4, 5, 20])
@pytest.mark.parametrize("sizes", ["one", "equal", "skewed"])
def test_no_fold_stays_empty_where_classes_have_few_groups(num_groups: int, sizes: str) -> None:
    generator = np.random.default_rng(num_groups)
    rows = []
    for name in CLASSES:
        for number in range(num_groups):
            size = {"one": 1, "equal": 40, "skewed": int(np.exp(generator.normal(3, 1))) + 1}[sizes]
            rows += [(f"{name}-{number}", name)] * size
    images = pd.DataFrame(rows, columns=["group", "class_name"])
    folds = assign_folds(images, CLASSES, 5, seed=0)
    assert folds.nunique() == 5
    assert (folds.groupby(images["group"]).nunique() == 1).all()
    if sizes != "skewed" and num_groups % 5 == 0:
        assert folds.value_counts().nunique() == 1
