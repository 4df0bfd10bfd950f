"""Near duplicates are found by their hashes, nearly all of them, however many there are."""

import numpy as np
import pytest

from drone.data.prepare.near_duplicates import (
    NEAR_DUPLICATE_THRESHOLD,
    hamming_distances,
    hash_groups,
    near_pairs,
)


def planted(count: int, pairs: int, distance: int, seed: int = 0) -> np.ndarray:
    """Random hashes; rows 2n and 2n + 1 of the first `pairs` pairs differ in `distance` bits."""
    rng = np.random.default_rng(seed)
    hashes_NB = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    for pair in range(pairs):
        bits = np.unpackbits(hashes_NB[2 * pair])
        bits[rng.choice(256, distance, replace=False)] ^= 1
        hashes_NB[2 * pair + 1] = np.packbits(bits)
    return hashes_NB


def test_pairs_are_those_of_a_brute_force_search() -> None:
    hashes_NB = np.concatenate([planted(200, 60, distance) for distance in (0, 5, 30, 50, 70)])
    all_distances = np.array([hamming_distances(hashes_NB, row) for row in hashes_NB])
    close = all_distances <= NEAR_DUPLICATE_THRESHOLD
    expected = np.argwhere(np.triu(close, 1))
    np.testing.assert_array_equal(near_pairs(hashes_NB), expected)


@pytest.mark.parametrize("distance", [20, 46, 56])
def test_pairs_in_a_large_set_are_found(distance: int) -> None:
    pairs = {tuple(pair) for pair in near_pairs(planted(20_000, 400, distance)).tolist()}
    expected = {(2 * pair, 2 * pair + 1) for pair in range(400)}
    assert len(pairs & expected) >= 398  # At the threshold one of a thousand may be missed.
    assert not pairs - expected


def test_thousands_of_copies_are_one_group() -> None:
    same = np.repeat(planted(1, 0, 0), 5000, axis=0)
    other = planted(300, 0, 0, seed=1)
    numbers = hash_groups(np.concatenate([same, other]))
    assert len(set(numbers[:5000])) == 1
    assert len(set(numbers)) == 301


def test_groups_are_chains_of_pairs() -> None:
    first = planted(1, 0, 0)[0]
    bits = np.unpackbits(first)
    chain = [first]
    for start in (0, 50, 100):
        bits[start : start + 50] ^= 1
        chain.append(np.packbits(bits))
    assert hamming_distances(chain[0], chain[-1]) == 150
    assert len(set(hash_groups(np.array(chain)))) == 1


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_compare(count: int) -> None:
    hashes_NB = planted(count, 0, 0)
    assert len(near_pairs(hashes_NB)) == 0 and len(hash_groups(hashes_NB)) == count
