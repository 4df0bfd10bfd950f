"""Whether caching activations pays for a run or for the trials of a search."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from drone.model.batchnorm import has_statistics
from drone.model.config import NUM_BLOCKS
from drone.model.cost import activation_size, frozen_cost_fraction
from drone.model.mobilenet import Classifier
from drone.training.activation_cache.keys import (
    View,
    augmented_view_facts,
    common_facts,
    parts_of,
)
from drone.training.activation_cache.store import ActivationStore, CacheSpec
from drone.training.config import TrainConfig
from drone.training.data import TrainingData
from drone.training.device import activation_dtype

_MIN_SAVED_SHARE = 0.2
"""Share of a training step; below it, reading and the disk cost more than they save."""


@dataclass(frozen=True)
class CacheDecision:
    """Whether a run reads cached activations."""

    use: bool
    reason: str
    """One line for the user, as a predicate: "reads cached activations, ..."."""


@dataclass(frozen=True, kw_only=True)
class CacheWorkload:
    """How much there is to cache, and how often it is read."""

    num_train: int = 0
    """Training images."""

    num_validation: int = 0
    """Validation images."""

    side_px: int = 224
    disk_gb: float = 0.0
    """Maximum size of the cache, in 10^9 bytes."""

    value_bytes: int = 4
    """Bytes of a number: 2 in bf16, 4 in fp32."""

    num_runs: int = 1
    """Runs or trials that read the same views."""

    num_strengths: int = 1
    """Different augmentation strengths among them."""

    cuts: tuple[int, ...] = ()
    """Cuts that are cached for others beside the run's own."""

    is_cached: bool = False
    """Whether the views are in the store already."""


def decide(config: TrainConfig, workload: CacheWorkload) -> CacheDecision:
    """Whether a run should read cached activations, and why."""
    cut = config.model.cut
    # The first reason that applies is printed, so the fundamental ones come first.
    if config.model.mixed:
        return _compute("a trainable resizer comes before its frozen blocks")
    if config.model.batchnorm == "drift":
        return _compute("the batch statistics of its frozen blocks drift")
    if cut == 0:
        return _compute("all blocks are trainable")
    saved = frozen_cost_fraction(cut, workload.side_px)
    if saved < _MIN_SAVED_SHARE:
        depth = NUM_BLOCKS - cut
        return _compute(f"with {depth} trainable blocks the frozen ones take {saved:.0%} of a step")
    # Without augmentation every epoch reads the same view.
    views = 1
    if config.augment.strength > 0:
        views = _num_views(config)
    needed_gb = _needed_gb(config, workload, views)
    # All or nothing: epochs read the views in turn, so with too little space each view would be
    # evicted just before it is read again.
    if needed_gb > workload.disk_gb:
        return _compute(
            f"they would take {needed_gb:.1f} GB, --activation-cache-gb allows {workload.disk_gb:g}"
        )
    reads = workload.num_runs * config.last_epoch / views
    # Before counting reads: views that are already stored pay even if each is read once.
    if workload.is_cached:
        return CacheDecision(True, f"reads cached activations, which saves {saved:.0%} of a step")
    if reads <= 1:
        return _compute("each view is read once (fewer --views, or a search, would read it again)")
    return CacheDecision(
        True,
        f"caches activations ({needed_gb:.2f} GB): each is read {reads:.0f} times, which saves "
        f"{saved:.0%} of a step",
    )


def _num_views(config: TrainConfig) -> int:
    """Returns how many augmented views a run reads."""
    return min(config.views or config.epochs, config.last_epoch)


def _compute(reason: str) -> CacheDecision:
    return CacheDecision(False, f"computes activations in each step: {reason}")


def _needed_gb(config: TrainConfig, workload: CacheWorkload, views: int) -> float:
    images = workload.num_train * views * workload.num_strengths
    images += workload.num_validation * (2 if config.model.test_time_flip else 1)
    cuts = {config.model.cut, *workload.cuts}
    values = sum(activation_size(cut, workload.side_px) for cut in cuts)
    return images * values * workload.value_bytes / 1e9


def plan_caching(
    config: TrainConfig,
    model: Classifier,
    data: TrainingData,
    device: torch.device,
    cache: CacheSpec,
    workload: CacheWorkload,
) -> CacheDecision:
    """Whether a run should read cached activations on this machine.

    Args:
        config: Config of the run.
        model: Model with its starting weights.
        data: Images of the run.
        device: Device that the run computes on.
        cache: Where activations are cached.
        workload: What is known of other runs; sizes and cuts are filled in here.
    """
    workload = replace(
        workload,
        num_train=len(data.train_N),
        num_validation=len(data.validation_N),
        side_px=data.images.store.side_px,
        disk_gb=cache.disk_gb,
        value_bytes=activation_dtype(config.precision, device).itemsize,
        cuts=cache.cuts,
    )
    cut = config.model.cut
    # The search chose cuts that fit on the disk together: another one would evict theirs.
    if cache.cuts and cut not in cache.cuts:
        alone = decide(config, replace(workload, cuts=()))
        no_space = _compute("the disk has no space for its cut beside the other trials'")
        return no_space if alone.use else alone
    # Random weights get their statistics later, and those decide the views' names.
    if has_statistics(model.features) and cut > 0:
        common = common_facts(config, model, data.images_id, device)
        store = ActivationStore(cache.folder, cache.disk_gb)
        views = {
            View.of(augmented_view_facts(common, config, number), len(data.images))
            for number in range(_num_views(config))
        }
        parts = parts_of(data.train_N)
        is_cached = all(store.has_all(view, cut, parts) for view in views)
        workload = replace(workload, is_cached=is_cached)
    return decide(config, workload)


def search_workload(
    *,
    num_train: int,
    num_validation: int,
    side_px: int,
    disk_gb: float,
    num_trials: int,
    strengths: Sequence[float] | None,
) -> CacheWorkload:
    """The workload of a search.

    Args:
        num_train: Number of training images.
        num_validation: Number of validation images.
        side_px: Side of the images in pixels.
        disk_gb: Maximum size of the cache, in 10^9 bytes.
        num_trials: Number of trials that share a seed; 1 if every trial has its own.
        strengths: Augmentation strengths that trials choose from; None if they come from a range,
            since no two trials need have the same then.
    """
    # Strength 0 has one view in all: only the others fill the disk.
    augmented = max(1, sum(strength > 0 for strength in strengths)) if strengths else 1
    return CacheWorkload(
        num_train=num_train,
        num_validation=num_validation,
        side_px=side_px,
        disk_gb=disk_gb,
        num_runs=1 if strengths is None else max(1, num_trials // augmented),
        num_strengths=augmented,
    )


def cuts_to_cache(
    depths: Sequence[int], config: TrainConfig, workload: CacheWorkload
) -> tuple[int, ...]:
    """The cuts of a search that are worth caching and fit on the disk together, deepest first.

    Args:
        depths: Unfreeze depths that trials choose from; empty if they come from a range.
        config: Base configuration of the trials.
        workload: Workload of the search.
    """
    cuts: tuple[int, ...] = ()
    # The deepest cut saves the largest part of a step, so it gets the space first.
    for depth in sorted({depth for depth in depths if depth < NUM_BLOCKS}):
        model = replace(config.model, unfreeze_depth=depth)
        cut = NUM_BLOCKS - depth
        candidate = replace(workload, cuts=(*cuts, cut))
        if decide(replace(config, model=model), candidate).use:
            cuts = (*cuts, cut)
    return cuts
