"""Groups of near duplicates, found by the distances of perceptual hashes."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from drone.data.prepare.verdicts import gets_split

NEAR_DUPLICATE_THRESHOLD = 56
"""Maximum Hamming distance, in bits of 256, at which two images count as near duplicates.

Measured on 804 photographs of drones and birds: JPEG at quality 20 moves an image by 20 bits or
fewer in 99 % of cases, half the size by 14, 30 % more brightness by 42, a margin cut by 2 % by
46. Pairs found up to 68 bits apart were the same photograph in another crop; the first pair of
different photographs came at 70, and unrelated ones are 128 apart on average.
"""

_MISS_PROBABILITY = 0.001
"""Probability that a pair exactly at the threshold is missed; closer pairs are missed less."""

_MAX_COMPARISONS = 64
"""Rows of a bucket that each row is compared with, so that many equal hashes stay cheap."""


def near_groups(frame: pd.DataFrame, threshold: int) -> "pd.Series[str]":
    """Returns the group of near duplicates of each file that gets a split, else "".

    Pairs at most `threshold` bits apart are joined to groups, transitively. The smallest md5 in
    a group names it.
    """
    in_split = frame[gets_split(frame)]
    names = pd.Series("", index=frame.index)
    if in_split.empty:
        return names
    hashes = np.frombuffer(bytes.fromhex("".join(in_split["phash"])), np.uint8)
    numbers = hash_groups(hashes.reshape(len(in_split), -1), threshold)
    names[in_split.index] = in_split["md5"].groupby(numbers).transform("min")
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


def hamming_distances(
    first_NB: NDArray[np.uint8], second_NB: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """Returns the Hamming distances of hashes in bits, row by row; the arguments broadcast."""
    counts_N: NDArray[np.int64] = np.bitwise_count(first_NB ^ second_NB).sum(
        axis=-1, dtype=np.int64
    )
    return counts_N


def near_pairs(
    hashes_NB: NDArray[np.uint8], threshold: int = NEAR_DUPLICATE_THRESHOLD
) -> NDArray[np.int64]:
    """Returns the pairs of rows at most `threshold` bits apart, (P, 2), each once, sorted.

    Locality-sensitive hashing by sampled bits (Indyk and Motwani 1998): only rows that agree in
    some sample are compared. A sample has as many bits as unrelated rows need to meet about once,
    and there are as many samples as close pairs need to meet nearly surely: the work grows like
    N^1.4 at the default threshold, not like N^2. The samples are the same in every run.
    """
    count, bits = hashes_NB.shape[0], hashes_NB.shape[1] * 8
    if count < 2:
        return np.empty((0, 2), np.int64)
    sampled_bits = max(8, int(np.ceil(np.log2(count))))
    agreement = max(1 - threshold / bits, 1e-3) ** sampled_bits
    num_samples = (
        int(np.ceil(np.log(_MISS_PROBABILITY) / np.log1p(-agreement))) if agreement < 1 else 1
    )
    # A constant seed: the same hashes must give the same groups in every run.
    rng = np.random.default_rng(0)
    codes = np.empty(0, np.int64)
    for _ in range(num_samples):
        chosen = rng.choice(bits, sampled_bits, replace=False)
        # A new order each time, so that _MAX_COMPARISONS does not always cut off the same pairs.
        pairs = _pairs_in_sample(hashes_NB, chosen, rng.permutation(count), threshold)
        # A pair is coded as one number, so that a pair of several samples is counted once.
        codes = np.union1d(codes, pairs[:, 0] * count + pairs[:, 1])
    return np.stack([codes // count, codes % count], axis=1)


def _pairs_in_sample(
    hashes_NB: NDArray[np.uint8],
    chosen_bits: NDArray[np.int64],
    shuffled_N: NDArray[np.int64],
    threshold: int,
) -> NDArray[np.int64]:
    """Returns the near pairs among rows that agree in the chosen bits, the smaller row first."""
    keys_N = np.zeros(len(hashes_NB), np.int64)
    for bit in chosen_bits.tolist():
        keys_N = keys_N << 1 | (hashes_NB[:, bit >> 3] >> (7 - (bit & 7)) & 1)
    order = shuffled_N[np.argsort(keys_N[shuffled_N], kind="stable")]
    ordered = keys_N[order]
    pairs = [np.empty((0, 2), np.int64)]
    # Rows of equal keys are neighbours now: compare each with the next, the one after, ...
    for step in range(1, min(len(order), _MAX_COMPARISONS + 1)):
        same = np.flatnonzero(ordered[step:] == ordered[:-step])
        if not len(same):
            break
        first, second = order[same], order[same + step]
        near = hamming_distances(hashes_NB[first], hashes_NB[second]) <= threshold
        pairs.append(np.stack([first[near], second[near]], axis=1))
    return np.sort(np.concatenate(pairs), axis=1)


def _connected_groups(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the group number of each of `count` rows when pairs are joined (union-find)."""
    ones = np.ones(len(pairs), dtype=np.int8)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    labels: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels
