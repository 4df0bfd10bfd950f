"""What the loop trains on: activations at the cut, computed in each step or read from the cache.

Both ways give the same bits: an image's activation does not depend on the batch it is in, as long
as that has a few images. Axes: N images, C channels, H and W positions.
"""

import copy
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from drone.data import augmentation, degradations
from drone.data.batches import DeviceSplit
from drone.model.config import NUM_BLOCKS
from drone.model.inference import with_mirrored
from drone.model.mobilenet import IMAGENET_MEAN, IMAGENET_STD, Classifier
from drone.training.activation_cache.keys import (
    PART_ROWS,
    Facts,
    View,
    augmented_view_facts,
    common_facts,
    parts_of,
    view_facts,
)
from drone.training.activation_cache.store import ActivationStore, CacheSpec
from drone.training.config import TrainConfig
from drone.training.data import TrainingData
from drone.training.device import activation_dtype, autocast

_FILL_BATCH = 64
"""Images whose activations are computed together when a part is filled."""

_MIN_BATCH = 16
"""Smaller batches go through other kernels on a CPU, whose last bits differ."""

_MAX_VALIDATION_BYTES = 10**9
"""Maximum size of the validation activations that are kept in memory."""

_LoadImages = Callable[[NDArray[np.int64]], Tensor]
"""Returns the images at some positions, (B, 3, H, W)."""

_Parts = dict[int, Tensor]
"""Parts of a view by their number."""


class ActivationSource(Protocol):
    """Where the activations at the cut come from."""

    def train(self, epoch: int, positions_B: NDArray[np.int64]) -> Tensor:
        """Activations of the augmented views of these training images in this epoch."""

    def validation(self, model: Classifier, positions_B: NDArray[np.int64]) -> Tensor:
        """Activations of these validation images, then of their mirrored ones if both are used.

        Args:
            model: Model that is evaluated; its frozen blocks are those of the one in training.
            positions_B: Positions among the validation images.
        """


class ImageSource:
    """Images as the network takes them: normalised, with or without augmentation.

    Images are addressed by their position among all images of the data set, so that every split
    and fold of them, and every trial, has the same views.
    """

    def __init__(self, config: TrainConfig, images: DeviceSplit, data: TrainingData) -> None:
        """Reads from the images.

        Args:
            config: Config of the run.
            images: All images of the data set, on the device.
            data: Says which of them are read.
        """
        self.config, self.images = config, images
        self.train_N, self.validation_N = data.train_N, data.validation_N
        self.development_N = data.development_N
        self._mean_C = torch.tensor(IMAGENET_MEAN, device=images.device)
        self._std_C = torch.tensor(IMAGENET_STD, device=images.device)

    def view_of(self, epoch: int) -> int:
        """Number of the view that an epoch uses."""
        return epoch % (self.config.views or self.config.epochs)

    def far_away(self, epoch: int, positions_B: NDArray[np.int64]) -> Tensor:
        """Which augmented views of an epoch show their objects far away, (B,) bool."""
        keys_B, config = self.images.keys_N[positions_B], self.config
        return degradations.far_away(config.augment, config.seed, self.view_of(epoch), keys_B)

    def augmented(self, view: int, positions_B: NDArray[np.int64]) -> Tensor:
        """A view of images, a pure function of seed, view and image, (B, 3, H, W)."""
        keys_B = self.images.keys_N[positions_B]
        views = augmentation.draw(self.config.augment, self.config.seed, view, keys_B)
        pixels = self.images.pixels(positions_B)
        return augmentation.apply(pixels, views, self._mean_C, self._std_C)

    def plain(self, positions_B: NDArray[np.int64]) -> Tensor:
        """Images without augmentation, (B, 3, H, W)."""
        pixels = self.images.pixels(positions_B)
        return augmentation.normalise(pixels, self._mean_C, self._std_C)


class ComputedActivations:
    """Activations that are computed in each step."""

    def __init__(self, model: Classifier, images: ImageSource, compiled: bool = False) -> None:
        """Uses the frozen blocks of a model."""
        self._model, self._images = model, images
        self._validation: dict[int, Tensor] = {}
        self._train_stem = torch.compile(model.stem) if compiled else model.stem

    def train(self, epoch: int, positions_B: NDArray[np.int64]) -> Tensor:
        """See ActivationSource."""
        source = self._images
        images = source.augmented(source.view_of(epoch), source.train_N[positions_B])
        if self._model.resizer is not None:
            return images  # The resizer is trainable, and nothing comes before it.
        if self._model.config.batchnorm == "drift":  # Batch statistics: padding would change them.
            return self._compute(self._train_stem, images)
        return self._compute(self._train_stem, _padded(images))[: len(images)]

    def validation(self, model: Classifier, positions_B: NDArray[np.int64]) -> Tensor:
        """See ActivationSource. Frozen activations are computed once and kept, if there is room."""
        # Validation has the same batches in every epoch, so its first position names a batch.
        first = int(positions_B[0])
        if first in self._validation:
            return self._validation[first]
        images = self._images.plain(self._images.validation_N[positions_B])
        if model.config.test_time_flip:
            images = with_mirrored(images)
        if model.resizer is not None:
            return images
        activations = self._compute(model.stem, _padded(images))[: len(images)]
        kept_bytes = sum(kept.nbytes for kept in self._validation.values())
        constant = model.config.batchnorm != "drift" and model.config.cut > 0
        if constant and kept_bytes + activations.nbytes <= _MAX_VALIDATION_BYTES:
            self._validation[first] = activations.clone()
        return activations

    def _compute(self, stem: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        with autocast(self._images.config.precision, images.device):
            return stem(images)


def _padded(images: Tensor) -> Tensor:
    """The images, repeated up to the minimum batch."""
    if len(images) >= _MIN_BATCH:
        return images
    return images[torch.arange(_MIN_BATCH, device=images.device) % len(images)]


class CachedActivations:
    """Activations that are read from the store, and computed and stored if they are missing."""

    def __init__(
        self, model: Classifier, images: ImageSource, images_id: str, cache: CacheSpec
    ) -> None:
        """Opens the store.

        Args:
            model: Model with its starting weights: trainable blocks have not been trained yet.
            images: Images that activations are computed from.
            images_id: Identity of the images of the data set.
            cache: Where activations are stored, and at which cuts.
        """
        config = images.config
        self._images, self._cut = images, config.model.cut
        self._views = ("plain", "mirrored") if config.model.test_time_flip else ("plain",)
        self._store = ActivationStore(cache.folder, cache.disk_gb)
        self._cuts = tuple(sorted({self._cut, *(cut for cut in cache.cuts if cut > 0)}))
        # A copy: trials with a cut further up need the blocks that are trained here as they were.
        self._blocks = copy.deepcopy(nn.Sequential(*model.features[: max(self._cuts)])).eval()
        self._device = images.images.device
        dtype = activation_dtype(config.precision, self._device)
        self._rows = _row_shapes(self._blocks, self._cuts, images, dtype)
        self._is_used_N = np.zeros(len(images.images), bool)
        self._is_used_N[images.development_N] = True
        self._common = common_facts(config, model, images_id, self._device)
        self._train: tuple[View, _Parts] | None = None
        self._validation: dict[str, _Parts] = {}

    def train(self, epoch: int, positions_B: NDArray[np.int64]) -> Tensor:
        """See ActivationSource."""
        number = self._images.view_of(epoch)
        facts = augmented_view_facts(self._common, self._images.config, number)
        view = View.of(facts, len(self._images.images))
        train_N = self._images.train_N
        if self._train is None or self._train[0] != view:
            self._train = None  # An epoch reads one view: the memory of the last can go.
            load = self._load_augmented(number)
            self._train = view, self._open(view, facts, train_N, load)
        return self._gather(self._train[1], train_N[positions_B])

    def validation(self, model: Classifier, positions_B: NDArray[np.int64]) -> Tensor:
        """See ActivationSource."""
        validation_N = self._images.validation_N
        for name in self._views:
            if name not in self._validation:
                facts = view_facts(self._common, name)
                view = View.of(facts, len(self._images.images))
                load = self._load_mirrored if name == "mirrored" else self._images.plain
                self._validation[name] = self._open(view, facts, validation_N, load)
        rows_N = validation_N[positions_B]
        return torch.cat([self._gather(self._validation[name], rows_N) for name in self._views])

    def _load_augmented(self, number: int) -> _LoadImages:
        if self._images.config.augment.strength == 0:
            return self._images.plain  # The bits of the plain view, which this one is.
        return lambda positions_B: self._images.augmented(number, positions_B)

    def _load_mirrored(self, positions_B: NDArray[np.int64]) -> Tensor:
        return self._images.plain(positions_B).flip(3)

    def _open(
        self, view: View, facts: Facts, positions_N: NDArray[np.int64], load: _LoadImages
    ) -> _Parts:
        """The parts of a view that hold these images; missing ones are computed."""
        self._store.describe(view, facts)
        parts = {part: self._read_whole(view, part) for part in parts_of(positions_N)}
        # First the parts that no other process is computing, then those that others were.
        for wait in (False, True):
            for part in [part for part, rows in parts.items() if rows is None]:
                with self._store.claim(view, part, wait) as claimed:
                    if claimed:
                        parts[part] = self._read_whole(view, part)
                        if parts[part] is None:
                            parts[part] = self._fill(view, part, load)
        return {part: rows for part, rows in parts.items() if rows is not None}

    def _read(self, view: View, cut: int, part: int) -> Tensor | None:
        return self._store.read(view, cut, part, self._rows[cut])

    def _read_whole(self, view: View, part: int) -> Tensor | None:
        """A part that has all images that are used; None if some are missing."""
        rows = self._read(view, self._cut, part)
        return None if len(_missing(rows, self._used_offsets(view, part))) else rows

    def _used_offsets(self, view: View, part: int) -> NDArray[np.int64]:
        """Where in a part the images of training and validation are."""
        return np.flatnonzero(self._is_used_N[view.positions(part)])

    @torch.no_grad()
    def _fill(self, view: View, part: int, load: _LoadImages) -> Tensor:
        """Computes what a part lacks at all cuts, and stores it.

        A part that was computed for another split of the same images lacks those that were in test.
        """
        positions = view.positions(part)
        stored = {cut: self._read(view, cut, part) for cut in self._cuts}
        offsets = _missing(stored[self._cut], self._used_offsets(view, part))
        # Starts from the deepest cut below this one that another trial has stored.
        start, source = max(
            (
                (cut, rows)
                for cut, rows in stored.items()
                if rows is not None and cut < self._cut and not len(_missing(rows, offsets))
            ),
            key=lambda pair: pair[0],
            default=(0, None),
        )
        missing = [
            cut for cut, rows in stored.items() if cut > start and len(_missing(rows, offsets))
        ]
        pieces: dict[int, list[Tensor]] = {cut: [] for cut in missing}
        for first in range(0, len(offsets), _FILL_BATCH):
            chunk = offsets[first : first + _FILL_BATCH]
            if source is None:
                activations = load(positions[chunk])
            else:
                activations = _as_activations(source[chunk].to(self._device))
            for cut, rows in self._forward(activations, start, missing).items():
                pieces[cut].append(rows.cpu())
        filled = {
            cut: _with_rows(stored[cut], len(positions), offsets, torch.cat(rows_of_cut))
            for cut, rows_of_cut in pieces.items()
        }
        for cut, rows in filled.items():
            self._store.write(view, cut, part, rows)
        mapped = self._read_whole(view, part)
        # Without space on the disk it stays in memory for as long as the view is open.
        return mapped if mapped is not None else filled[self._cut]

    def _forward(self, activations: Tensor, start: int, cuts: list[int]) -> dict[int, Tensor]:
        """Rows at some cuts, from the activations at an earlier one."""
        count = len(activations)
        activations = _padded(activations)
        rows_by_cut = {}
        with autocast(self._images.config.precision, self._device):
            for cut in range(start + 1, max(cuts) + 1):
                activations = self._blocks[cut - 1](activations)
                if cut in cuts:
                    # After the last block only the mean is used: 1,280 numbers instead of 62,720.
                    pooled = activations.mean(dim=(2, 3)) if cut == NUM_BLOCKS else None
                    rows = activations.permute(0, 2, 3, 1) if pooled is None else pooled
                    # Channels last, as the network has them in memory: reading needs no reordering.
                    rows_by_cut[cut] = rows[:count].contiguous()
        return rows_by_cut

    def _gather(self, parts: _Parts, positions_B: NDArray[np.int64]) -> Tensor:
        """Rows of a view as the network's activations."""
        first = next(iter(parts.values()))
        rows = torch.empty((len(positions_B), *first.shape[1:]), dtype=first.dtype)
        part_B = positions_B // PART_ROWS
        for part in np.unique(part_B):
            own = torch.from_numpy(np.flatnonzero(part_B == part))
            offsets = torch.from_numpy(positions_B % PART_ROWS)[own]
            rows[own] = parts[int(part)][offsets]
        return _as_activations(rows.to(self._device))


def _missing(rows: Tensor | None, offsets_P: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of these images of a part have no activations: their rows are NaN."""
    if rows is None:
        return offsets_P
    is_missing_P: NDArray[np.bool_] = rows.flatten(1)[:, 0].isnan().numpy()
    return offsets_P[is_missing_P[offsets_P]]


def _with_rows(
    stored: Tensor | None, count: int, offsets_P: NDArray[np.int64], rows: Tensor
) -> Tensor:
    """A part with rows of some images put in; those of images that it lacks are NaN."""
    if stored is None:
        whole = torch.full((count, *rows.shape[1:]), torch.nan, dtype=rows.dtype)
    else:
        whole = stored.clone()
    whole[torch.from_numpy(offsets_P)] = rows
    return whole


def _as_activations(rows: Tensor) -> Tensor:
    """Rows as they are stored, (N, H, W, C) or (N, C), in the network's order of axes."""
    return rows.permute(0, 3, 1, 2) if rows.ndim == 4 else rows


def _row_shapes(
    blocks: nn.Sequential, cuts: tuple[int, ...], images: ImageSource, dtype: torch.dtype
) -> dict[int, tuple[int, ...]]:
    """Shape of a stored row at each cut, with the bytes of a value as the last axis."""
    activation = images.plain(images.development_N[:1])
    shapes: dict[int, tuple[int, ...]] = {}
    with torch.no_grad():
        for cut, block in enumerate(blocks, start=1):
            activation = block(activation)
            if cut in cuts:
                channels, height, width = activation.shape[1:]
                row = (channels,) if cut == NUM_BLOCKS else (height, width, channels)
                shapes[cut] = (*row, dtype.itemsize)
    return shapes
