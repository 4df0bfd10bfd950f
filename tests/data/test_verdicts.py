"""Verdicts on records: copies, near duplicates, and the original project's numbers."""

import numpy as np
import pytest

from drone.data.prepare.clean import assign_verdicts, steps_table
from drone.data.prepare.original_tables import original_counts
from drone.data.prepare.scan import ScanRecord
from drone.data.prepare.split import SplitSettings, assign_splits
from drone.data.prepare.verdicts import ACROSS, NEAR, WITHIN
from drone.labels import CLASSES
from tests.data import seed_set
from tests.data.test_decisions import by_hand_decision


def record(path: str, number: int) -> ScanRecord:
    """The record of a file whose content has this number; text files hold no image."""
    no_image = path.endswith((".svg", ".txt", ".ipynb"))
    phash = np.random.default_rng(number).bytes(32).hex()
    return ScanRecord(
        root="raw",
        path=path,
        class_name=path.split("/")[0],
        size_bytes=1000,
        md5=f"{number:032x}",
        content="" if no_image else f"{number:032x}",
        phash="" if no_image else phash,
        format="" if no_image else "JPEG",
        mode="RGB",
        width=0 if no_image else 400,
        height=0 if no_image else 300,
        orientation=0,
        camera="",
        sharpness=100.0,
        brightness=0.5,
        problem="non-media" if no_image else "",
        detail="",
    )


@pytest.fixture(scope="module")
def original() -> list[ScanRecord]:
    """A collection of the original's structure: 21,805 files."""
    records = [record(path, number) for path, number in seed_set.layout()]
    return sorted(records, key=lambda record: record.path)


def test_the_originals_policy_gives_the_originals_numbers(original: list[ScanRecord]) -> None:
    frame = assign_verdicts(original, "seed", 56)
    counts = original_counts(frame, CLASSES)
    assert counts.loc["errornous_file"].tolist() == [0, 7, 0, 13, 20]
    assert counts.loc["duplicate"].tolist() == [407, 159, 247, 1445, 2258]
    assert counts.loc["cross_duplicate"].tolist() == [0, 0, 70, 34, 104]
    assert counts.loc["removed"].tolist() == [407, 166, 317, 1486, 2376]
    steps = steps_table(frame, CLASSES)
    assert steps.loc["kept"].tolist() == [7931, 4003, 3306, 4189, 19429]
    np.testing.assert_array_equal(steps.drop(index="kept").sum(axis=0), steps.loc["kept"])


def test_the_default_policy_goes_by_content(original: list[ScanRecord]) -> None:
    steps = steps_table(assign_verdicts(original, "drop-all", 56), CLASSES)
    # Valid GIF and JFIF stay; text does not. No copy of an image in two classes is kept.
    non_media = [path for path, _ in seed_set.layout() if path.endswith((".svg", ".txt", ".ipynb"))]
    assert steps.loc["non-media", "total"] == -len(non_media)
    text_copies = len(non_media) - len(
        {number for path, number in seed_set.layout() if path in non_media}
    )
    assert steps.loc[WITHIN, "total"] == -2258 + text_copies
    assert steps.loc[ACROSS].tolist() == [0, -85, -89, -34, -208]


def near_pair(path: str, other: str, size: tuple[int, int]) -> list[ScanRecord]:
    first, second = record(path, 1), record(other, 2)
    values = {**second.__dict__, "phash": first.phash, "width": size[0], "height": size[1]}
    return [first, ScanRecord(**values)]


def test_of_near_duplicates_a_previous_one_is_kept_else_the_largest() -> None:
    pair = near_pair("Flying Birds/a.jpg", "Flying Birds/b.jpg", (800, 600))
    for previous, kept in (((), [False, True]), ((pair[0].content,), [True, False])):
        frame = assign_verdicts(pair, "drop-all", 56, near_duplicates="drop", previous=previous)
        assert frame["kept"].tolist() == kept
        dropped = frame[~frame["kept"]].iloc[0]
        assert dropped["reason"] == NEAR
        assert dropped["duplicate_of"] == frame[frame["kept"]].iloc[0]["path"]
    assert assign_verdicts(pair, "drop-all", 56)["kept"].all()


def test_a_relabelled_or_dropped_image_keeps_its_split(original: list[ScanRecord]) -> None:
    some = original[::25]
    before = assign_splits(assign_verdicts(some, "first", 56), CLASSES, SplitSettings(), 56)
    decisions = {
        md5: by_hand_decision(
            md5, "relabel" if number % 2 else "drop", CLASSES[2] if number % 2 else ""
        )
        for number, md5 in enumerate(before.loc[before["kept"], "md5"][:60])
    }
    after = assign_splits(
        assign_verdicts(some, "first", 56, decisions=decisions), CLASSES, SplitSettings(), 56
    )
    assert after["split"].equals(before["split"])
