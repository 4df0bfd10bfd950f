"""Groups of near duplicates, found by the distances of perceptual hashes."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from drone.data.prepare.perceptual_hash import HASH_BITS, TURN_PENALTY, UnorientedHashes
from drone.data.prepare.verdicts import gets_split

NEAR_DUPLICATE_THRESHOLD = 56
"""Maximum Hamming distance, in bits of 256, at which two images count as near duplicates.

Measured on 804 photographs of drones and birds: JPEG at quality 20 moves an image by 20 bits or
fewer in 99 % of cases, half the size by 14, 30 % more brightness by 42, a margin cut by 2 % by
46. Pairs found up to 68 bits apart were the same photograph in another crop; the first pair of
different photographs came at 70, and unrelated ones are 128 apart on average.
"""

_MISS_PROBABILITY = 1e-3
"""Probability that a pair exactly at the threshold is missed; closer pairs are missed less."""

_MISS_PROBABILITY_TURNED = 1e-5
"""The same if the bits that differ were spread evenly over the even ones and the others. They are
not, so it is about 1e-3 in truth."""

_MAX_COMPARISONS = 64
"""Rows of a bucket that each row is compared with, so that many equal hashes stay cheap."""


def near_groups(frame: pd.DataFrame, threshold: int) -> "pd.Series[str]":
    """Returns the group of near duplicates of each file that gets a split, else "".

    Pairs at most `threshold` bits apart are joined to groups, transitively. The smallest md5 in
    a group names it, that of a negative only where there is no image of a class.
    """
    in_split = frame[gets_split(frame)]
    names = pd.Series("", index=frame.index)
    if in_split.empty:
        return names
    hashes = np.frombuffer(bytes.fromhex("".join(in_split["phash"])), np.uint8)
    numbers = hash_groups(hashes.reshape(len(in_split), -1), threshold)
    # The name decides the order in which groups are split, which negatives must not change.
    is_negative = in_split["kind"] != ""
    ordered = in_split.assign(number=numbers, last=is_negative).sort_values(["last", "md5"])
    names[ordered.index] = ordered.groupby("number")["md5"].transform("first")
    return names


def hash_groups(
    hashes_NB: NDArray[np.uint8], threshold: int = NEAR_DUPLICATE_THRESHOLD
) -> NDArray[np.int64]:
    """Returns the group number of each hash, (N,); pairs within the threshold share a group."""
    # Equal hashes are merged first: thousands of copies would be compared with each other.
    unique_UB, unique_index_N = np.unique(hashes_NB, axis=0, return_inverse=True)
    numbers_U = _connected_groups(len(unique_UB), near_pairs(unique_UB, threshold))
    numbers_N: NDArray[np.int64] = numbers_U[unique_index_N.ravel()]
    return numbers_N


def near_pairs(
    hashes_NB: NDArray[np.uint8], threshold: int = NEAR_DUPLICATE_THRESHOLD
) -> NDArray[np.int64]:
    """Returns the pairs of rows at most `threshold` bits apart, (P, 2), each once, sorted.

    Locality-sensitive hashing by sampled bits (Indyk and Motwani 1998): only rows that agree in
    some sample are compared. A sample has as many bits as unrelated rows need to meet about once,
    and there are as many samples as close pairs need to meet nearly surely: the work grows like
    N^1.4 at the default threshold, not like N^2. The samples are the same in every run.
    """
    count = len(hashes_NB)
    # A pair is coded as one number, so that a pair of several samples is counted once.
    codes = np.empty(0, np.int64)
    if count > 1:
        hashes = UnorientedHashes(hashes_NB)
        for rows_P2 in _candidates(hashes_NB, hashes, threshold):
            first, second = np.sort(rows_P2 % count, axis=1).T
            near = (first < second) & (hashes.distances(first, second) <= threshold)
            codes = np.union1d(codes, first[near] * count + second[near])
    return np.stack([codes // count, codes % count], axis=1)


def _candidates(
    hashes_NB: NDArray[np.uint8], hashes: UnorientedHashes, threshold: int
) -> Iterator[NDArray[np.int64]]:
    """Yields pairs of rows that may be near; row N + n is row n transposed."""
    # A constant seed: the same hashes must give the same groups in every run.
    rng = np.random.default_rng(0)
    # Images of the same orientation are found by samples of all bits, and the others by samples of
    # those that no flip changes: a turn by 90 degrees is a flip of the transposed image.
    yield from _meetings(np.unpackbits(hashes_NB, axis=1), threshold, _MISS_PROBABILITY, rng)
    if threshold >= TURN_PENALTY:
        even_bits = hashes.even_bits_2NE.reshape(2 * len(hashes_NB), -1)
        yield from _meetings(even_bits, threshold - TURN_PENALTY, _MISS_PROBABILITY_TURNED, rng)


def _meetings(
    bits_NF: NDArray[np.uint8], threshold: int, miss_probability: float, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yields for each sample of bits the pairs of rows that agree in it, (P, 2)."""
    count, num_bits = bits_NF.shape
    sampled_bits = max(8, int(np.ceil(np.log2(count))))
    agreement = max(1 - threshold / HASH_BITS, 1e-3) ** sampled_bits
    num_samples = (
        int(np.ceil(np.log(miss_probability) / np.log1p(-agreement))) if agreement < 1 else 1
    )
    bits_FN = np.ascontiguousarray(bits_NF.T)
    for _ in range(num_samples):
        chosen = rng.choice(num_bits, sampled_bits, replace=False)
        # A new order each time, so that _MAX_COMPARISONS does not always cut off the same pairs.
        shuffled_N = rng.permutation(count)
        keys_N = _keys(bits_FN[chosen])[shuffled_N]
        order = np.argsort(keys_N, kind="stable")
        yield _neighbours(shuffled_N[order], keys_N[order])


def _keys(bits_SN: NDArray[np.uint8]) -> NDArray[np.unsignedinteger]:
    """Returns the sampled bits of each row as one number."""
    # NumPy sorts numbers of 16 bits in linear time.
    dtype = np.uint16 if len(bits_SN) <= 16 else np.uint64
    keys_N: NDArray[np.unsignedinteger] = np.zeros(bits_SN.shape[1], dtype)
    for bits_N in bits_SN:
        keys_N = np.left_shift(keys_N, 1) | bits_N
    return keys_N


def _neighbours(order: NDArray[np.int64], keys: NDArray[np.unsignedinteger]) -> NDArray[np.int64]:
    """Returns the pairs of rows with equal keys, given rows in the order of their keys."""
    pairs = [np.empty((0, 2), np.int64)]
    # Compare each with the next, the one after, ...
    for step in range(1, min(len(order), _MAX_COMPARISONS + 1)):
        same = np.flatnonzero(keys[step:] == keys[:-step])
        if not len(same):
            break
        pairs.append(np.stack([order[same], order[same + step]], axis=1))
    return np.concatenate(pairs)


def _connected_groups(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the group number of each of `count` rows when pairs are joined (union-find)."""
    ones = np.ones(len(pairs), dtype=np.int8)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    labels: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels
