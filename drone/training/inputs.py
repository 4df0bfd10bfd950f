"""What the loop trains on: activations at the cut, computed in each step or read from the store.

Both ways give the same bits: a picture's activation does not depend on the batch it is in, so
long as that has a few pictures. Axes: N pictures, C channels, H and W positions.
"""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from drone.data import augment
from drone.data.batches import Feed
from drone.data.dataset import Split
from drone.model.batchnorm import has_statistics
from drone.model.config import NUM_BLOCKS
from drone.model.inference import mirrored_too
from drone.model.mobilenet import IMAGENET_MEAN, IMAGENET_STD, Classifier
from drone.training.config import TrainConfig
from drone.training.device import autocast, computes_in
from drone.training.features import PART_ROWS, FeatureStore, Reuse, View
from drone.training.planner import Decision, Extent, decide

_FILL_BATCH = 64
_FEWEST = 16
"""Smaller batches go through other kernels on a processor, whose last bits differ."""

_VALIDATION_BYTES = 10**9
"""The most of validation's activations that stay in memory."""

_Images = Callable[[NDArray[np.int64]], Tensor]
"""Gives the pictures at some positions, (B, 3, H, W)."""


class Inputs(Protocol):
    """Where the activations at the cut come from."""

    def train(self, epoch: int, positions_B: NDArray[np.int64]) -> Tensor:
        """Of the views of these pictures in this epoch."""

    def validation(self, model: Classifier, positions_B: NDArray[np.int64]) -> Tensor:
        """Of these pictures as they are, then of their mirror images if the model asks for both.

        Args:
            model: that is evaluated; its frozen blocks are those of the one that learns.
            positions_B: of pictures in the split.
        """


class Pictures:
    """Pictures as the network takes them."""

    def __init__(self, config: TrainConfig, train: Feed, validation: Feed) -> None:
        """Reads from the feeds."""
        self.config, self.feeds = config, {"train": train, "validation": validation}
        device = train.device
        self.mean_C = torch.tensor(IMAGENET_MEAN, device=device)
        self.std_C = torch.tensor(IMAGENET_STD, device=device)

    def view_of(self, epoch: int) -> int:
        """Number of the view that an epoch sees."""
        return epoch % (self.config.views or self.config.epochs)

    def augmented(self, view: int, positions_B: NDArray[np.int64]) -> Tensor:
        """A view of training pictures, a pure function of seed, view and picture, (B, 3, H, W)."""
        feed = self.feeds["train"]
        drawn = augment.draw(self.config.augment, self.config.seed, view, feed.keys_N[positions_B])
        return augment.apply(feed.pixels(positions_B), drawn, self.mean_C, self.std_C)

    def plain(self, split: str, positions_B: NDArray[np.int64]) -> Tensor:
        """Pictures as they are, (B, 3, H, W)."""
        return augment.normalise(self.feeds[split].pixels(positions_B), self.mean_C, self.std_C)


class Computed:
    """Activations that are computed when they are asked for."""

    def __init__(self, model: Classifier, pictures: Pictures, compiled: bool = False) -> None:
        """Uses the frozen blocks of a model."""
        self.model, self.pictures = model, pictures
        self._validation: dict[int, Tensor] = {}
        self._train_stem = torch.compile(model.stem) if compiled else model.stem

    def train(self, epoch: int, positions_B: NDArray[np.int64]) -> Tensor:
        """See Inputs."""
        images = self.pictures.augmented(self.pictures.view_of(epoch), positions_B)
        if self.model.resizer is not None:
            return images  # It learns, and nothing comes before it.
        if self.model.config.batchnorm == "drift":  # Statistics of the batch: add nothing to it.
            return self._computed(self._train_stem, images)
        return self._computed(self._train_stem, _enough(images))[: len(images)]

    def validation(self, model: Classifier, positions_B: NDArray[np.int64]) -> Tensor:
        """See Inputs. What is frozen is computed once and stays in memory, if there is room."""
        first = int(positions_B[0])
        if first in self._validation:
            return self._validation[first]
        images = self.pictures.plain("validation", positions_B)
        if model.config.flip_test:
            images = mirrored_too(images)
        if model.resizer is not None:
            return images
        activations = self._computed(model.stem, _enough(images))[: len(images)]
        kept_bytes = sum(kept.nbytes for kept in self._validation.values())
        constant = model.config.batchnorm != "drift" and model.config.cut > 0
        if constant and kept_bytes + activations.nbytes <= _VALIDATION_BYTES:
            self._validation[first] = activations.clone()
        return activations

    def _computed(self, stem: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        with autocast(self.pictures.config.precision, images.device):
            return stem(images)


def _enough(images: Tensor) -> Tensor:
    """The same, repeated until they are at least a few."""
    if len(images) >= _FEWEST:
        return images
    return images[torch.arange(_FEWEST, device=images.device) % len(images)]


class Kept:
    """Activations that are read from the store, and put there if they are missing."""

    def __init__(
        self, model: Classifier, pictures: Pictures, fingerprint: str, reuse: Reuse
    ) -> None:
        """Prepares to read.

        Args:
            model: with its starting weights: blocks that learn have not learned yet.
            pictures: what is computed from.
            fingerprint: of the data set.
            reuse: where activations are kept.
        """
        config = pictures.config
        self.pictures, self.cut = pictures, config.model.cut
        self.flip_test = config.model.flip_test
        self.store = FeatureStore(reuse.folder, reuse.disk_gb)
        self.cuts = tuple(sorted({self.cut, *(cut for cut in reuse.cuts if cut > 0)}))
        # A copy: what learns here is what others, with a cut further up, still need as it was.
        deepest = max(self.cuts)
        self.blocks = copy.deepcopy(nn.Sequential(*model.features[:deepest])).eval()
        self.device = pictures.feeds["train"].device
        self.dtype = computes_in(config.precision, self.device)
        self._rows = _row_shapes(self.blocks, self.cuts, pictures, self.dtype)
        self._facts = _common_facts(config, model, fingerprint, self.device)
        self._train: tuple[View, list[Tensor]] | None = None
        self._validation: dict[str, list[Tensor]] = {}

    def train(self, epoch: int, positions_B: NDArray[np.int64]) -> Tensor:
        """See Inputs."""
        number = self.pictures.view_of(epoch)
        facts = self.facts_of(number)
        view = View.of(facts, len(self.pictures.feeds["train"]))
        if self._train is None or self._train[0] != view:
            self._train = None  # An epoch reads one view: the last one's memory can go.
            self._train = view, self._opened(view, facts, self._images_of(number))
        return self._gather(self._train[1], positions_B)

    def validation(self, model: Classifier, positions_B: NDArray[np.int64]) -> Tensor:
        """See Inputs."""
        ways = ("plain", "mirror image") if self.flip_test else ("plain",)
        for way in ways:
            if way not in self._validation:
                facts = {**self._facts, "split": "validation", "view": way}
                view = View.of(facts, len(self.pictures.feeds["validation"]))
                images = self._mirrored if way == "mirror image" else self._plain
                self._validation[way] = self._opened(view, facts, images)
        return torch.cat([self._gather(self._validation[way], positions_B) for way in ways])

    def facts_of(self, number: int) -> dict[str, Any]:
        """What decides a view of the training pictures."""
        return _view_facts(self._facts, self.pictures.config, number)

    def _images_of(self, number: int) -> _Images:
        return lambda positions_B: self.pictures.augmented(number, positions_B)

    def _plain(self, positions_B: NDArray[np.int64]) -> Tensor:
        return self.pictures.plain("validation", positions_B)

    def _mirrored(self, positions_B: NDArray[np.int64]) -> Tensor:
        return self._plain(positions_B).flip(3)

    def _opened(self, view: View, facts: dict[str, Any], images: _Images) -> list[Tensor]:
        """All parts of a view; those that nobody has computed yet are computed."""
        self.store.describe(view, facts)
        parts = {part: self._read(view, part) for part in range(view.num_parts)}
        # First what nobody else is at, then what others were at.
        for wait in (False, True):
            for part in [part for part, rows in parts.items() if rows is None]:
                with self.store.claim(view, part, wait) as mine:
                    if mine:
                        parts[part] = self._read(view, part)
                        if parts[part] is None:
                            parts[part] = self._filled(view, part, images)
        return [rows for rows in parts.values() if rows is not None]

    def _read(self, view: View, part: int) -> Tensor | None:
        return self.store.read(view, self.cut, part, self._rows[self.cut])

    @torch.no_grad()
    def _filled(self, view: View, part: int, images: _Images) -> Tensor:
        """Computes a part at all cuts that are missing, and keeps them."""
        positions = view.positions(part)
        known = [(cut, self.store.read(view, cut, part, self._rows[cut])) for cut in self.cuts]
        start, source = max(
            ((cut, rows) for cut, rows in known if rows is not None and cut < self.cut),
            key=lambda found: found[0],
            default=(0, None),
        )
        wanted = [cut for cut, rows in known if rows is None and cut > start]
        kept: dict[int, list[Tensor]] = {cut: [] for cut in wanted}
        for first in range(0, len(positions), _FILL_BATCH):
            chunk = slice(first, first + _FILL_BATCH)
            if source is None:
                activations = images(positions[chunk])
            else:
                activations = _as_activations(source[chunk].to(self.device))
            for cut, rows in self._through(activations, start, wanted).items():
                kept[cut].append(rows.cpu())
        for cut, pieces in kept.items():
            self.store.write(view, cut, part, torch.cat(pieces))
        mapped = self._read(view, part)
        # Without room on the disk it stays in memory for as long as the view is open.
        return mapped if mapped is not None else torch.cat(kept[self.cut])

    def _through(self, activations: Tensor, start: int, wanted: list[int]) -> dict[int, Tensor]:
        """Rows at some cuts, from the activations at an earlier one."""
        count = len(activations)
        activations = _enough(activations)
        found = {}
        with autocast(self.pictures.config.precision, self.device):
            for cut in range(start + 1, max(wanted) + 1):
                activations = self.blocks[cut - 1](activations)
                if cut in wanted:
                    pooled = activations.mean(dim=(2, 3)) if cut == NUM_BLOCKS else None
                    rows = activations.permute(0, 2, 3, 1) if pooled is None else pooled
                    found[cut] = rows[:count].contiguous()
        return found

    def _gather(self, parts: list[Tensor], positions_B: NDArray[np.int64]) -> Tensor:
        """Rows of a view as the network's activations."""
        rows = torch.empty((len(positions_B), *parts[0].shape[1:]), dtype=parts[0].dtype)
        part_B = positions_B // PART_ROWS
        for part in np.unique(part_B):
            own = torch.from_numpy(np.flatnonzero(part_B == part))
            offsets = torch.from_numpy(positions_B % PART_ROWS)[own]
            rows[own] = parts[part][offsets]
        return _as_activations(rows.to(self.device))


def _as_activations(rows: Tensor) -> Tensor:
    """Rows as they are kept, (N, H, W, C) or (N, C), in the network's order of axes."""
    return rows.permute(0, 3, 1, 2) if rows.ndim == 4 else rows


def _row_shapes(
    blocks: nn.Sequential, cuts: tuple[int, ...], pictures: Pictures, dtype: torch.dtype
) -> dict[int, tuple[int, ...]]:
    """Shape of a kept row at each cut, with the bytes of a value as the last axis."""
    one = pictures.plain("train", np.zeros(1, dtype=np.int64))
    shapes: dict[int, tuple[int, ...]] = {}
    with torch.no_grad():
        for cut, block in enumerate(blocks, start=1):
            one = block(one)
            if cut in cuts:
                kept = (one.shape[1],) if cut == NUM_BLOCKS else (*one.shape[2:], one.shape[1])
                shapes[cut] = (*kept, dtype.itemsize)
    return shapes


def _digest(features: nn.Module) -> str:
    """SHA-256 of all weights and statistics."""
    digest = hashlib.sha256()
    for name, value in features.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _common_facts(
    config: TrainConfig, model: Classifier, fingerprint: str, device: torch.device
) -> dict[str, Any]:
    """What decides all views alike."""
    return {
        "weights": _digest(model.features),
        "fingerprint": fingerprint,
        "dtype": str(computes_in(config.precision, device)),
        "device": device.type,
        "torch": torch.__version__,
    }


def _view_facts(common: dict[str, Any], config: TrainConfig, number: int) -> dict[str, Any]:
    facts = {**common, "split": "train"}
    if config.augment.strength == 0:  # Every view is the picture itself.
        return {**facts, "view": "plain"}
    return {**facts, "view": number, "seed": config.seed, "augment": asdict(config.augment)}


def plan_reuse(
    config: TrainConfig,
    model: Classifier,
    splits: tuple[Split, Split],
    fingerprint: str,
    device: torch.device,
    reuse: Reuse,
    extent: Extent,
) -> Decision:
    """Whether a run should read kept activations on this machine.

    Args:
        config: of the run.
        model: with its starting weights.
        splits: training and validation.
        fingerprint: of the data set.
        device: that it computes on.
        reuse: where activations are kept.
        extent: what is known of other runs; the rest is filled in here.
    """
    cut = config.model.cut
    extent = replace(
        extent,
        train=len(splits[0]),
        validation=len(splits[1]),
        side_px=splits[0].store.side_px,
        disk_gb=reuse.disk_gb,
        value_bytes=computes_in(config.precision, device).itemsize,
        cuts=reuse.cuts,
    )
    if reuse.cuts and cut not in reuse.cuts:
        alone = decide(config, replace(extent, cuts=()))
        reason = "computes its activations in each step: the disk has no room for its cut as well"
        return Decision(False, reason) if alone.reuse else alone
    if has_statistics(model.features) and cut > 0:
        common = _common_facts(config, model, fingerprint, device)
        store = FeatureStore(reuse.folder, reuse.disk_gb)
        views = {
            View.of(_view_facts(common, config, number), extent.train)
            for number in range(min(config.views or config.epochs, config.epochs))
        }
        extent = replace(extent, kept_already=all(store.has_all(view, cut) for view in views))
    return decide(config, extent)
