"""Near duplicates are found by their hashes, nearly all of them, however many there are."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from drone.data.prepare.near_duplicates import NEAR_DUPLICATE_THRESHOLD, hash_groups, near_pairs
from drone.data.prepare.perceptual_hash import TURN_PENALTY, UnorientedHashes, perceptual_hash
from drone.data.prepare.plan import map_sequentially, plan_dataset
from drone.labels import CLASSES
from drone.synth.drawing import draw
from tests.data.preparing import SMALL

SQUARE = np.arange(256).reshape(16, 16)


def planted(count: int, pairs: int, distance: int, seed: int = 0) -> np.ndarray:
    """Random hashes; rows 2n and 2n + 1 of the first `pairs` pairs differ in `distance` bits."""
    rng = np.random.default_rng(seed)
    hashes_NB = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    for pair in range(pairs):
        bits = np.unpackbits(hashes_NB[2 * pair])
        bits[rng.choice(256, distance, replace=False)] ^= 1
        hashes_NB[2 * pair + 1] = np.packbits(bits)
    return hashes_NB


def orientations(hash_B: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The hash of each turn and flip: frequencies that are odd along a flipped axis are negated."""
    upright = np.unpackbits(hash_B).reshape(16, 16)
    odd = np.arange(16) % 2
    flips = (0 * odd, odd)
    return [
        np.packbits(square ^ vertical[:, None] ^ horizontal)
        for square in (upright, upright.T)
        for vertical in flips
        for horizontal in flips
    ]


def distance(first_B: NDArray[np.uint8], second_B: NDArray[np.uint8]) -> int:
    upright, *others = (
        int(np.bitwise_count(first_B ^ turned).sum()) for turned in orientations(second_B)
    )
    return min(upright, min(others) + TURN_PENALTY)


def test_distances_are_the_smallest_over_turns_and_flips() -> None:
    rng = np.random.default_rng(0)
    hashes_NB = planted(60, 30, 9)
    hashes_NB[1::2] = [orientations(row)[rng.integers(8)] for row in hashes_NB[1::2]]
    first, second = np.triu_indices(60)
    expected = [distance(hashes_NB[a], hashes_NB[b]) for a, b in zip(first, second, strict=True)]
    assert UnorientedHashes(hashes_NB).distances(first, second).tolist() == expected
    assert UnorientedHashes(hashes_NB).distances(second, first).tolist() == expected
    assert sum(value <= 9 + TURN_PENALTY for value in expected) == 60 + 30


def test_pairs_are_those_of_a_brute_force_search() -> None:
    hashes_NB = np.concatenate([planted(200, 60, bits) for bits in (0, 5, 30, 50, 70)])
    first, second = np.triu_indices(len(hashes_NB), 1)
    distances = UnorientedHashes(hashes_NB).distances(first, second)
    close = distances <= NEAR_DUPLICATE_THRESHOLD
    expected = np.stack([first[close], second[close]], axis=1)
    np.testing.assert_array_equal(near_pairs(hashes_NB), expected)


@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize("bits", [20, 44, 56])
def test_pairs_in_a_large_set_are_found(bits: int, is_turned: bool) -> None:
    hashes_NB = planted(20_000, 400, bits - is_turned * TURN_PENALTY)
    if is_turned:
        hashes_NB[1:800:2] = [
            orientations(row)[1 + number % 7] for number, row in enumerate(hashes_NB[1:800:2])
        ]
    pairs = {tuple(pair) for pair in near_pairs(hashes_NB).tolist()}
    expected = {(2 * pair, 2 * pair + 1) for pair in range(400)}
    assert len(pairs & expected) >= 398  # At the threshold one of a thousand may be missed.
    assert not pairs - expected


def encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("method", list(Image.Transpose))
def test_a_turned_and_recompressed_image_is_near(method: Image.Transpose) -> None:
    images = [draw(name, 320, 240, np.random.default_rng(n)) for n, name in enumerate(CLASSES)]
    turned = [encoded(image.transpose(method), format="JPEG", quality=60) for image in images]
    hashes = [perceptual_hash(image) for image in images]
    hashes += [perceptual_hash(Image.open(io.BytesIO(data))) for data in turned]
    groups = hash_groups(np.array([np.frombuffer(value, np.uint8) for value in hashes]))
    assert len(set(groups[:4])) == 4 and (groups[:4] == groups[4:]).all()


def test_turned_copies_share_a_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for name in CLASSES:
        folder = tmp_path / name
        folder.mkdir()
        for number in range(8):
            image = draw(name, 200, 160, rng)
            image.save(folder / f"{number}.png")
            image.transpose(Image.Transpose(number % 7)).save(folder / f"z{number}.jpg")
    manifest = plan_dataset([tmp_path], SMALL, map_sequentially).manifest
    assert manifest["kept"].all() and manifest["group"].nunique() == 32
    assert (manifest.groupby("group")["split"].nunique() == 1).all()


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
    assert np.bitwise_count(chain[0] ^ chain[-1]).sum() == 150
    assert len(set(hash_groups(np.array(chain)))) == 1


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_compare(count: int) -> None:
    hashes_NB = planted(count, 0, 0)
    assert len(near_pairs(hashes_NB)) == 0 and len(hash_groups(hashes_NB)) == count
