"""Perceptual hashes and the groups of near duplicates that they give."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

HASH_BITS = 256
HASH_BYTES = HASH_BITS // 8

DEFAULT_MAX_DISTANCE = 56
"""Largest Hamming distance, of 256 bits, at which two pictures count as near duplicates.

Measured on 804 photographs of drones and birds: JPEG at quality 20 moves a picture by 20 bits or
fewer in 99 % of cases, half the size by 14, 30 % more brightness by 42, a margin cut by 2 % by
46. Pairs found up to 68 bits apart were the same photograph in another crop; the first pair of
different photographs came at 70, and unrelated ones are 128 apart on average.
"""

_SIDE_PX = 64
_COEFFICIENTS = 16
_MISSED = 0.001
"""Chance that a pair of exactly the largest distance is not found; closer ones are missed less."""

_NEIGHBOURS = 64
"""Rows of a bucket that each row is compared with, so that a heap of look-alikes stays cheap."""


def perceptual_hash(image: Image.Image) -> bytes:
    """The 32 bytes that describe what a picture looks like, blind to size and compression.

    The signs of the 16 x 16 lowest frequencies of a discrete cosine transform of the grey
    picture, against their median (Zauner 2010, pHash, with 256 bits instead of 64).
    """
    grey = image if image.mode == "L" else image.convert("L")
    grey = grey.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX)
    frequencies = dctn(np.asarray(grey, dtype=np.float32), norm="ortho")
    low = frequencies[:_COEFFICIENTS, :_COEFFICIENTS].ravel()
    bits = low > np.median(low[1:])
    return np.packbits(bits).tobytes()


def distances(first_NB: NDArray[np.uint8], second_NB: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Hamming distances of hashes, row by row, in bits."""
    counts_N: NDArray[np.int64] = np.bitwise_count(first_NB ^ second_NB).sum(
        axis=-1, dtype=np.int64
    )
    return counts_N


def near_pairs(
    hashes_NB: NDArray[np.uint8], max_distance: int = DEFAULT_MAX_DISTANCE
) -> NDArray[np.int64]:
    """Pairs of rows at most `max_distance` bits apart, (P, 2), each pair once, sorted.

    Locality-sensitive hashing by sampled bits (Indyk and Motwani 1998): only rows that agree in
    some sample are compared. A sample has as many bits as unrelated rows need to meet about once,
    and there are as many samples as close pairs need to meet nearly surely: the work grows like
    N^1.4 at the default distance, not like N^2. The samples are the same in every run.
    """
    count, bits = hashes_NB.shape[0], hashes_NB.shape[1] * 8
    if count < 2:
        return np.empty((0, 2), np.int64)
    sampled = max(8, int(np.ceil(np.log2(count))))
    meeting = max(1 - max_distance / bits, 1e-3) ** sampled
    samples = int(np.ceil(np.log(_MISSED) / np.log1p(-meeting))) if meeting < 1 else 1
    rng = np.random.default_rng(0)
    codes = np.empty(0, np.int64)
    for _ in range(samples):
        chosen = rng.choice(bits, sampled, replace=False)
        found = _pairs_in_sample(hashes_NB, chosen, rng.permutation(count), max_distance)
        # A pair as one number: pairs that several samples find are found once.
        codes = np.union1d(codes, found[:, 0] * count + found[:, 1])
    return np.stack([codes // count, codes % count], axis=1)


def _pairs_in_sample(
    hashes_NB: NDArray[np.uint8],
    chosen: NDArray[np.int64],
    shuffled_N: NDArray[np.int64],
    max_distance: int,
) -> NDArray[np.int64]:
    """Near pairs among rows that agree in the chosen bits, the smaller row first."""
    keys_N = np.zeros(len(hashes_NB), np.int64)
    for bit in chosen.tolist():
        keys_N = keys_N << 1 | (hashes_NB[:, bit >> 3] >> (7 - (bit & 7)) & 1)
    order = shuffled_N[np.argsort(keys_N[shuffled_N], kind="stable")]
    ordered = keys_N[order]
    found = [np.empty((0, 2), np.int64)]
    # Rows of equal keys are neighbours now: compare each with the next, the one after, ...
    for step in range(1, min(len(order), _NEIGHBOURS + 1)):
        same = np.flatnonzero(ordered[step:] == ordered[:-step])
        if not len(same):
            break
        first, second = order[same], order[same + step]
        near = distances(hashes_NB[first], hashes_NB[second]) <= max_distance
        found.append(np.stack([first[near], second[near]], axis=1))
    return np.sort(np.concatenate(found), axis=1)


def near_groups(
    hashes_NB: NDArray[np.uint8], max_distance: int = DEFAULT_MAX_DISTANCE
) -> NDArray[np.int64]:
    """Group number of each row when rows at most `max_distance` bits apart belong together."""
    unique_UB, place_N = np.unique(hashes_NB, axis=0, return_inverse=True)
    numbers: NDArray[np.int64] = groups(len(unique_UB), near_pairs(unique_UB, max_distance))
    return numbers[place_N.ravel()]


def groups(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Group number of each of `count` rows when every pair belongs together (union-find)."""
    ones = np.ones(len(pairs), dtype=np.int8)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    labels: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels
