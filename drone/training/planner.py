"""Whether keeping activations pays for a run or for the trials of a search."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from drone.model.config import NUM_BLOCKS
from drone.model.cost import saved_share, values_at
from drone.training.config import TrainConfig

_LEAST_SAVED = 0.2
"""Of a training step; below it, reading and the disk cost more than they save."""


@dataclass(frozen=True)
class Decision:
    """What the planner says."""

    reuse: bool
    reason: str
    """In a line, for a person."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much there is to keep, and where."""

    train: int = 0
    """Training pictures."""

    validation: int = 0
    """Validation pictures."""

    side_px: int = 224
    disk_gb: float = 0.0
    """The most that may be kept, in 10^9 bytes."""

    value_bytes: int = 4
    """Of a number: 2 in bf16, 4 in fp32."""

    runs: int = 1
    """Runs or trials that see the same views."""

    strengths: int = 1
    """Different strengths of augmentation among them."""

    cuts: tuple[int, ...] = ()
    """Cuts that are kept for others beside the run's own."""

    kept_already: bool = False
    """Whether the views are in the store."""


def decide(config: TrainConfig, extent: Extent) -> Decision:
    """Whether a run should read kept activations, and why."""
    cut = config.model.cut
    if config.model.mixed:
        return _no("a resizing network learns before its frozen blocks")
    if config.model.batchnorm == "drift":
        return _no("the statistics of its frozen blocks drift, so nothing stays the same")
    if cut == 0:
        return _no("all blocks learn, nothing is frozen")
    saved = saved_share(cut, extent.side_px)
    if saved < _LEAST_SAVED:
        depth = NUM_BLOCKS - cut
        return _no(f"with {depth} blocks learning the others take only {saved:.0%} of a step")
    strength = config.augment.strength
    views = 1 if strength == 0 else min(config.views or config.epochs, config.epochs)
    needed_gb = _needed_gb(config, extent, views)
    if needed_gb > extent.disk_gb:
        return _no(
            f"it would take {needed_gb:.1f} GB and --features-disk allows {extent.disk_gb:g}"
        )
    reads = extent.runs * config.epochs / views
    if reads <= 1 and not extent.kept_already:
        return _no("each view is seen once (fewer --views, or a search, would read it again)")
    if extent.kept_already:
        return Decision(True, f"reads kept activations, which saves {saved:.0%} of a step")
    return Decision(
        True,
        f"keeps activations ({needed_gb:.2f} GB): each is read {reads:.0f} times, which saves "
        f"{saved:.0%} of a step",
    )


def _needed_gb(config: TrainConfig, extent: Extent, views: int) -> float:
    pictures = extent.train * views * extent.strengths
    pictures += extent.validation * (2 if config.model.flip_test else 1)
    cuts = {config.model.cut, *extent.cuts}
    values = sum(values_at(cut, extent.side_px) for cut in cuts)
    return pictures * values * extent.value_bytes / 1e9


def cuts_to_keep(cuts: Sequence[int], config: TrainConfig, extent: Extent) -> tuple[int, ...]:
    """Those of the cuts of a search that pay and fit on the disk together, the deepest first."""
    kept: tuple[int, ...] = ()
    for cut in sorted({cut for cut in cuts if cut > 0}, reverse=True):
        model = replace(config.model, unfreeze_depth=NUM_BLOCKS - cut)
        wanted = replace(extent, cuts=(*kept, cut))
        if decide(replace(config, model=model), wanted).reuse:
            kept = (*kept, cut)
    return kept


def _no(reason: str) -> Decision:
    return Decision(False, f"computes its activations in each step: {reason}")
