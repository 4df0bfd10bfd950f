"""Evidence maps on their scale, and as a page gets them."""

import base64

import numpy as np

from drone.serving.evidence import Evidence, encode, normalised


def test_evidence_against_the_class_is_zero_and_the_most_is_one() -> None:
    map_HW = np.array([[-2.0, 0.0], [1.0, 4.0]], np.float32)
    np.testing.assert_array_equal(normalised(map_HW), [[0, 0], [0.25, 1]])


def test_a_map_without_evidence_for_the_class_is_zero() -> None:
    assert not normalised(np.full((7, 7), -0.5, np.float32)).any()
    assert not normalised(np.zeros((7, 7), np.float32)).any()


def test_a_page_gets_one_byte_per_cell_row_by_row() -> None:
    evidence = Evidence("Flying Birds", ((0.0, 1.0), (0.5, 0.2)))
    assert list(base64.b64decode(evidence.encoded())) == [0, 255, 128, 51]
    assert len(encode(np.zeros((7, 7)))) == 68
