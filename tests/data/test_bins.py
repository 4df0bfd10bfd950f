"""Images at the bins of their sizes: nearest bin, packing, and batches of one bin."""

import math
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from drone.data.batches import Batches
from drone.data.bins import BIN_SIDES_PX, PIXEL_BUDGET, batch_size_for, nearest_bin
from drone.data.dataset import Dataset, open_dataset
from drone.data.pixels import PixelStore, bin_shard_rows, shard_name
from drone.data.prepare.plan import PrepareSettings, map_sequentially, plan_dataset
from drone.data.prepare.write import undo_last, write_dataset
from drone.errors import ConfigError, DataError
from drone.files import checksum
from drone.model.resizer import SIDES_PX, STACKS
from drone.serving.preprocess import Preprocessing, to_pixels
from drone.storage.dataset_cache import open_at


def test_the_nearest_bin_and_ties_go_down() -> None:
    longer = [1, 224, 336, 337, 448, 560, 561, 1120, 1568, 2688, 2689, 9000]
    expected = [224, 224, 224, 448, 448, 448, 672, 896, 1344, 1792, 3584, 3584]
    assert [BIN_SIDES_PX[at] for at in nearest_bin(longer)] == expected


def test_a_batch_keeps_to_its_pixel_budget() -> None:
    assert [batch_size_for(side, 256, PIXEL_BUDGET) for side in BIN_SIDES_PX] == [
        256,
        64,
        28,
        16,
        7,
        4,
        1,
    ]
    assert [batch_size_for(side, 20, PIXEL_BUDGET) for side in BIN_SIDES_PX] == [
        20,
        20,
        20,
        16,
        7,
        4,
        1,
    ]
    assert batch_size_for(3584, 64, 1) == 1  # At least one image goes through.


def test_resizers_know_the_same_sides() -> None:
    assert SIDES_PX == BIN_SIDES_PX
    assert all(side == 224 * math.prod(factors) for side, factors in STACKS.items())


def test_a_shard_of_large_images_has_few() -> None:
    rows = [bin_shard_rows(side) for side in BIN_SIDES_PX]
    assert rows == [512, 128, 56, 32, 14, 8, 2]
    sizes = [count * side**2 * 3 for count, side in zip(rows, BIN_SIDES_PX, strict=True)]
    assert max(sizes) <= 512 * 224**2 * 3


def test_each_image_is_packed_at_its_bin_as_it_would_be_served(
    mixed: Dataset, mixed_raw: Path
) -> None:
    train = mixed.at_bins().split("train")
    assert set(train.sides_N) == {224, 448, 672, 896}
    for position, path in enumerate(train.paths):
        pixels = train.gather(np.array([position]))[0]
        data = (mixed_raw / path).read_bytes()
        assert pixels.shape == (train.sides_N[position],) * 2 + (3,)
        assert np.array_equal(pixels, to_pixels(data, mixed.preprocessing, BIN_SIDES_PX)), path
    plain = mixed.split("train")
    assert set(plain.sides_N) == {224} and plain.paths == train.paths
    assert len(plain.gather(np.arange(len(plain)))) == len(train)


def test_a_batch_of_two_bins_is_refused(mixed: Dataset) -> None:
    train = mixed.at_bins().split("train")
    with pytest.raises(ValueError, match=r"one bin.*\[224, 448"):
        train.gather(np.arange(len(train)))


def test_adding_bins_changes_no_data_and_updates_keep_them(mixed_raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "d"
    planned = plan_dataset([mixed_raw], PrepareSettings(), map_sequentially)
    plain, _ = write_dataset(planned, out, map_sequentially)
    with pytest.raises(DataError, match="224 px only.*--bins"):
        open_at(str(out), at_bins=True)
    binned, written = write_dataset(planned, out, map_sequentially, bins=True)
    assert written and binned.has_bins and binned.fingerprint == plain.fingerprint
    assert (
        write_dataset(planned, out, map_sequentially)[1] is False
    )  # Nothing new, and they are still there.
    assert open_dataset(out).has_bins
    fewer = plan_dataset(
        [mixed_raw], PrepareSettings(policy="first", near_duplicates="drop"), map_sequentially, out
    )
    assert write_dataset(fewer, out, map_sequentially)[0].has_bins
    assert (
        undo_last(out, map_sequentially).at_bins().split("train").paths
        == plain.split("train").paths
    )
    shutil.rmtree(out / "pixels" / "0896")
    with pytest.raises(DataError, match=r"0896.*missing or damaged"):
        open_dataset(out).at_bins().split("train")


def test_undo_removes_added_bins(mixed_raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "d"
    planned = plan_dataset([mixed_raw], PrepareSettings(), map_sequentially)
    write_dataset(planned, out, map_sequentially)
    write_dataset(planned, out, map_sequentially, bins=True)
    assert not undo_last(out, map_sequentially).has_bins
    assert not (out / "pixels" / "0448").exists()


def test_many_shards_need_few_open_files(tmp_path: Path) -> None:
    folder = tmp_path / "pixels"
    folder.mkdir()
    for number in range(90):
        np.save(folder / shard_name(number), np.full((1, 4, 4, 3), number, np.uint8))
    checksums = {file: checksum(file) for file in folder.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 75, hard))
    try:
        store = PixelStore(folder, 90, 4, checksums, shard_rows=1)
        pixels = store.gather(np.arange(90))
        resource.setrlimit(resource.RLIMIT_NOFILE, (in_use, hard))
        with pytest.raises(DataError, match="too many files are open.*ulimit"):
            PixelStore(folder, 90, 4, checksums, shard_rows=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert list(pixels[:, 0, 0, 0]) == list(range(90))


def test_bins_need_the_smallest_side(mixed_raw: Path, tmp_path: Path) -> None:
    settings = PrepareSettings(preprocessing=Preprocessing(side_px=64))
    with pytest.raises(ConfigError, match="--bins needs --preprocessing.side-px 224"):
        write_dataset(
            plan_dataset([mixed_raw], settings, map_sequentially),
            tmp_path / "d",
            map_sequentially,
            bins=True,
        )


SIDES_N = np.repeat([224, 448, 672, 1792, 3584], [37, 90, 40, 9, 2])


def test_an_epoch_is_a_pure_function_with_every_image() -> None:
    batches = Batches(SIDES_N, 32, PIXEL_BUDGET)
    order = batches.order(3, 1)
    assert order.shape == (batches.steps, 32) == (math.ceil(len(SIDES_N) / 32), 32)
    assert np.array_equal(order, batches.order(3, 1))
    assert not np.array_equal(order, batches.order(3, 2))
    assert not np.array_equal(order, batches.order(4, 1))
    flat = order.ravel()
    assert set(flat[: len(SIDES_N)]) == set(range(len(SIDES_N)))
    assert np.array_equal(flat[len(SIDES_N) :], flat[: order.size - len(SIDES_N)])


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_micro_batches_hold_one_bin_and_all_images_of_the_step(world_size: int) -> None:
    batches = Batches(SIDES_N, 32, PIXEL_BUDGET)
    sizes: dict[int, list[int]] = {}
    for step in batches.order(0, 0):
        micro_batches = batches.micro_batches(step, world_size)
        assert sorted(np.concatenate(micro_batches)) == sorted(step)
        for positions in micro_batches:
            (side,) = set(SIDES_N[positions])
            sizes.setdefault(int(side), []).append(len(positions))
            assert -(-len(positions) // world_size) <= batch_size_for(int(side), 32, PIXEL_BUDGET)
    # Where a bin has enough images, they go together and not one by one.
    assert all(np.mean(counts) > 1.5 for side, counts in sizes.items() if side < 3584), sizes


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_counts_each_image_once(world_size: int) -> None:
    batches = Batches(SIDES_N, 64, PIXEL_BUDGET)
    evaluated = [
        positions
        for rank in range(world_size)
        for positions in batches.sequential(rank, world_size, 64)
    ]
    assert sorted(np.concatenate(evaluated)) == list(range(len(SIDES_N)))
    assert all(len(set(SIDES_N[positions])) == 1 for positions in evaluated)
