"""The training loop: the only one, whoever launches it.

Every rank runs it with the same arguments and a context of its own. The global batches, views and
dropout masks do not depend on the number of ranks; losses and counts are summed over ranks and
divided once. So the number of workers changes the speed and not the result.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as distributed
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from drone.config import to_dict
from drone.data.batches import Batches, Feed
from drone.data.dataset import Dataset, Split
from drone.errors import Interrupted, RunError, TrainingError
from drone.model.batchnorm import estimate_statistics, has_statistics, set_silent
from drone.model.inference import probabilities_at_cut
from drone.model.mobilenet import Classifier
from drone.training import checkpoint
from drone.training.checkpoint import Identity, Position
from drone.training.config import TrainConfig, epoch_rank
from drone.training.context import Context, History, Progress, Stop
from drone.training.device import autocast, set_tf32
from drone.training.features import Reuse
from drone.training.inputs import Computed, Inputs, Kept, Pictures
from drone.training.memory import keep_freed_memory
from drone.training.optim import MovingAverage, build_optimizer, rates, set_rates
from drone.training.tally import Tally
from drone.training.watchdog import Watchdog

_EVALUATION_BATCH = 128
_STATISTICS_BATCH = 64


class Preempted(Exception):
    """The machine of a worker goes away; a checkpoint was written, the launcher starts again."""


@dataclass(frozen=True)
class Material:
    """What is trained on."""

    train: Split
    validation: Split
    classes: tuple[str, ...]
    fingerprint: str
    """Of the data set, and of the way in which it is shared out if that is not its own."""

    commit: str = "unknown"
    """Git commit of the program, for the checkpoint."""

    @staticmethod
    def of(dataset: Dataset, commit: str, resplit: int | None = None) -> "Material":
        """The pictures of a data set.

        Args:
            dataset: whose.
            commit: of the program.
            resplit: number of another way to share out training and validation.
        """
        if resplit is None:
            train, validation = dataset.split("train"), dataset.split("validation")
        else:
            train, validation = dataset.resplit(resplit)
        again = "" if resplit is None else f"-resplit-{resplit}"
        return Material(
            train=train,
            validation=validation,
            classes=dataset.classes,
            fingerprint=f"{dataset.fingerprint}{again}",
            commit=commit,
        )


def fit(
    config: TrainConfig,
    material: Material,
    model: Classifier,
    context: Context,
    reuse: Reuse | None = None,
) -> History:
    """Trains a model, or goes on where the context's checkpoint stands.

    Args:
        config: what to compute.
        material: the pictures.
        model: with its starting weights; on every rank the same.
        context: rank, device, reports, stops.
        reuse: where activations of frozen blocks are kept; None computes them in each step. It
            changes the speed and no number.

    Returns:
        An entry for each epoch. The checkpoint that was reported last holds the weights of the
        best epoch on validation.

    Raises:
        TrainingError: a loss is not finite; every rank raises it before the optimiser's step. Or
            the watchdog stopped the run, after a checkpoint.
        Interrupted: asked to stop, after a checkpoint.
        Preempted: a worker's machine goes away, after a checkpoint.
    """
    keep_freed_memory()
    set_tf32(False)  # fp32 means fp32; who wants speed has bf16.
    return _Run(config, material, model, context, reuse).go()


class _Run:
    """The state of a run on one rank."""

    def __init__(
        self,
        config: TrainConfig,
        material: Material,
        model: Classifier,
        context: Context,
        reuse: Reuse | None,
    ) -> None:
        self.config, self.material, self.context = config, material, context
        self.identity = Identity(
            config=to_dict(config),
            classes=material.classes,
            fingerprint=material.fingerprint,
            commit=material.commit,
        )
        device = context.device
        self.model = model.to(device)
        self.train_feed = Feed(material.train, device)
        self.validation_feed = Feed(material.validation, device)
        self.batch_size = min(config.batch_size, len(self.train_feed))
        self.batches = _batches(config, material.train, self.batch_size)
        self.steps = self.batches.steps
        self.pictures = Pictures(config, self.train_feed, self.validation_feed)
        if not has_statistics(self.model.features):
            estimate_statistics(self.model.features, self._first_pictures())
        self.inputs: Inputs = (
            Kept(self.model, self.pictures, material.fingerprint, reuse)
            if reuse
            else Computed(self.model, self.pictures, config.compile)
        )
        self.optimizer = build_optimizer(self.model, config.optim)
        decay = config.optim.ema_decay
        self.average = MovingAverage(self.model, decay) if decay else None
        self.position = Position()
        self.best = _copy_state(self.evaluated)
        self.tally = Tally(len(material.classes), device)
        self._resume()
        self.network = self._distribute()
        self.control = _Control(config, context)
        self.watchdog = Watchdog(config, len(material.classes))
        self.finite = _FiniteCheck(self.optimizer, device)

    @property
    def evaluated(self) -> Classifier:
        """The weights that validation sees."""
        return self.average.model if self.average else self.model

    def go(self) -> History:
        for epoch in range(self.position.epoch, self.config.epochs):
            self._train_epoch(epoch)
            self._end_epoch(epoch)
        return self.position.history

    def _distribute(self) -> nn.Module:
        network: nn.Module = self.model
        if self.context.world_size > 1:
            # A part of a step uses the resizer of its own size alone.
            several = self.model.resizer is not None
            network = DistributedDataParallel(
                self.model, gradient_as_bucket_view=not several, find_unused_parameters=several
            )
        return torch.compile(network) if self.config.compile else network  # type: ignore[return-value]

    def _first_pictures(self) -> Iterator[Tensor]:
        """A few batches of training pictures as they are, as the backbone takes them."""
        count = min(len(self.train_feed), 4 * _STATISTICS_BATCH)
        for start in range(0, count, _STATISTICS_BATCH):
            positions = np.arange(start, min(start + _STATISTICS_BATCH, count))
            resizer = self.model.resizer or nn.Identity()
            parts = self.batches.parts(positions, 1)
            yield torch.cat([resizer(self.pictures.plain("train", part)) for part in parts])

    def _train_epoch(self, epoch: int) -> None:
        order = self.batches.order(self.config.seed, epoch)
        began = time.monotonic() - self.position.elapsed_s
        done = self.position.batch
        self.network.train()
        for batch in range(done, self.steps):
            self._step(epoch, batch, order[batch])
            self.position.batch = batch + 1
            self.position.elapsed_s = time.monotonic() - began
            self._tell_progress(epoch)
            if batch + 1 < self.steps:
                self._heed(self.control.after_step())
        self.finite.check()

    def _step(self, epoch: int, batch: int, positions_B: NDArray[np.int64]) -> None:
        step = epoch * self.steps + batch
        set_rates(self.optimizer, rates(self.config, step, self.steps))
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.batches.parts(positions_B, self.context.world_size)
        sides = [int(self.batches.sides_N[part[0]]) for part in parts]
        for number, part in enumerate(parts):
            # Ranks exchange gradients once for each size: parameters that the pass does not use,
            # those of other sizes, keep what they have.
            with nullcontext() if sides[number] not in sides[number + 1 :] else self._alone():
                self._accumulate(epoch, part, len(positions_B))
        norm = self._clip()
        self.finite.before_step(norm, epoch, batch)
        self.optimizer.step()
        if self.average:
            self.average.update(self.model, step)

    def _accumulate(self, epoch: int, part_P: NDArray[np.int64], batch_size: int) -> None:
        """Adds the gradient of a part of a step, one size of pictures, over all ranks."""
        world = self.context.world_size
        own = part_P[self.context.rank :: world]
        counted = len(own)
        if not counted:  # A rank without a picture goes along with one that does not count.
            own = part_P[:1]
        if world > 1:
            set_silent(self.model.features, not counted)
        activations = self.inputs.train(epoch, own)
        labels_N = self.train_feed.labels_N[torch.from_numpy(own).to(self.context.device)]
        self.model.key_dropout(
            self.config.seed, epoch, self.train_feed.keys_N[own].to(self.context.device)
        )
        with self._autocast():
            logits_NK = self.network(activations, at_cut=True).float()
        logits_NK, labels_N = logits_NK[:counted], labels_N[:counted]
        smoothing = self.config.optim.label_smoothing
        loss_sum = functional.cross_entropy(
            logits_NK, labels_N, label_smoothing=smoothing, reduction="sum"
        )
        # DDP takes the mean of the ranks' gradients: this makes it the mean over the batch.
        (loss_sum * (world / batch_size)).backward()  # type: ignore[no-untyped-call]
        self.tally.add(loss_sum.detach(), logits_NK.detach().argmax(dim=1), labels_N)

    def _alone(self) -> AbstractContextManager[object]:
        """Leaves the gradients of this rank to itself."""
        if self.context.world_size == 1:
            return nullcontext()
        waits: AbstractContextManager[object] = self.network.no_sync()  # type: ignore[operator]
        return waits

    def _clip(self) -> Tensor:
        """Clips the gradient, if so configured; its norm is not finite if any part is not."""
        parameters = [value for value in self.model.parameters() if value.grad is not None]
        most = self.config.optim.clip_norm or float("inf")
        return nn.utils.clip_grad_norm_(parameters, most, foreach=True)

    def _autocast(self) -> AbstractContextManager[object]:
        return autocast(self.config.precision, self.context.device)

    def _tell_progress(self, epoch: int) -> None:
        if self.context.rank == 0:
            batch = self.position.batch
            speed = batch * self.batch_size / max(self.position.elapsed_s, 1e-9)
            self.context.progress(
                Progress(
                    epoch=epoch + 1,
                    epochs=self.config.epochs,
                    step=batch,
                    steps=self.steps,
                    batch_size=self.batch_size,
                    images_per_s=speed,
                )
            )

    def _heed(self, wish: "_Wish") -> None:
        """Writes a checkpoint if one is due, and stops if asked to."""
        if wish.checkpoint or wish.stop is not Stop.NO:
            self._report()
        self._end_if(wish.stop)

    @staticmethod
    def _end_if(stop: Stop) -> None:
        """Ends the run if asked to; a checkpoint must have been written."""
        if stop is Stop.INTERRUPTED:
            raise Interrupted("Training was stopped; --resume goes on from here.")
        if stop is Stop.PREEMPTED:
            raise Preempted

    def _end_epoch(self, epoch: int) -> None:
        metrics = self.tally.reduced().metrics("train", self.material.classes)
        metrics |= self.evaluate()
        for name, rate in rates(self.config, (epoch + 1) * self.steps - 1, self.steps).items():
            metrics[f"lr/{name}"] = rate
        images = self.steps * self.batch_size
        metrics["speed/images_per_s"] = images / max(self.position.elapsed_s, 1e-9)
        metrics["speed/epoch_s"] = self.position.elapsed_s
        # The time is fixed here and kept, so that a replay gives the tracker the same point.
        entry = {"epoch": epoch + 1, "time_ms": int(time.time() * 1000), "metrics": metrics}
        self._remember_best(epoch + 1, metrics)
        self.position = Position(
            epoch=epoch + 1,
            history=[*self.position.history, entry],
            best=self.position.best,
        )
        self.tally = Tally(len(self.material.classes), self.context.device)
        wish = self.control.after_step()
        stops = wish.stop is not Stop.NO
        self._report(save=self.context.saves_each_epoch or wish.checkpoint or stops)
        if epoch + 1 < self.config.epochs:  # Else it is over, and has its best epoch.
            self.watchdog.check(self.position.history)
            self._end_if(wish.stop)

    def _remember_best(self, epoch: int, metrics: dict[str, float]) -> None:
        score, loss = metrics["validation/macro_f1"], metrics["validation/loss"]
        best = self.position.best
        select = self.config.select
        if not best or epoch_rank(score, loss, select) > epoch_rank(
            best["macro_f1"], best["loss"], select
        ):
            self.position.best = {"epoch": epoch, "macro_f1": score, "loss": loss}
            self.best = _copy_state(self.evaluated)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Metrics on validation, each picture counted once over all ranks."""
        feed, model = self.validation_feed, self.evaluated.eval()
        tally = Tally(len(self.material.classes), self.context.device)
        batches = _batches(self.config, self.material.validation, _EVALUATION_BATCH)
        rank, world = self.context.rank, self.context.world_size
        for positions in batches.once(rank, world, _EVALUATION_BATCH):
            labels_N = feed.labels_N[torch.from_numpy(positions).to(self.context.device)]
            with self._autocast():
                probs_NK = probabilities_at_cut(model, self.inputs.validation(model, positions))
            losses_N = functional.nll_loss(
                probs_NK.clamp_min(1e-12).log(), labels_N, reduction="sum"
            )
            tally.add(losses_N, probs_NK.argmax(dim=1), labels_N)
        return tally.reduced().metrics("validation", self.material.classes)

    def _report(self, save: bool = True) -> None:
        """Reports, usually with a checkpoint; all ranks together."""
        self.finite.check()
        if save:
            self.control.restart_timer()
        total = self.tally.reduced().state()
        if self.context.rank != 0 or not save:
            self.context.report(self.position.history, None)
            return
        self.position.tally = total
        weights = {"model": _copy_state(self.model)}
        if self.average:
            weights["average"] = _copy_state(self.average.model)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "checkpoint"
            state = self.optimizer.state_dict()
            checkpoint.save(folder, self.position, self.identity, weights, state, self.best)
            self.context.report(self.position.history, folder)

    def _resume(self) -> None:
        folder = self.context.resume_from()
        if folder is None:
            return
        loaded = checkpoint.load(folder)
        if loaded.identity.fingerprint != self.material.fingerprint:
            raise RunError(
                f"The checkpoint {folder} was trained on the data set "
                f"{loaded.identity.fingerprint[:12]}, this one is "
                f"{self.material.fingerprint[:12]}. Resume with the data set that it began with."
            )
        self.model.load_state_dict(loaded.weights["model"])
        if self.average:
            self.average.model.load_state_dict(loaded.weights["average"])
        self.optimizer.load_state_dict(loaded.optimizer)
        self.best = loaded.best
        self.position = loaded.position
        if self.context.rank == 0 and self.position.tally:  # The sums of all ranks go to one.
            self.tally.restore(self.position.tally)


def _batches(config: TrainConfig, split: Split, most: int) -> Batches:
    return Batches(split.sides_N, most, config.pixel_budget if config.model.mixed else None)


def _copy_state(model: Classifier) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


@dataclass(frozen=True)
class _Wish:
    """What all ranks agree to do after a step."""

    checkpoint: bool
    stop: Stop


class _Control:
    """Lets all ranks agree on checkpoints and stops, which any of them may want."""

    def __init__(self, config: TrainConfig, context: Context) -> None:
        self.context = context
        self.every_s = config.checkpoint_every_s
        self.last = time.monotonic()
        self._steps = 0
        # Asking costs a collective on the processor; a GPU's steps are too short for one each.
        self._every_steps = 1 if context.device.type == "cpu" else 20
        self._group = self._processor_group()

    def _processor_group(self) -> distributed.ProcessGroup | None:
        if not distributed.is_initialized() or distributed.get_backend() == "gloo":
            return None
        group = distributed.new_group(backend="gloo")
        assert isinstance(group, distributed.ProcessGroup)
        return group

    def restart_timer(self) -> None:
        self.last = time.monotonic()

    def after_step(self) -> _Wish:
        self._steps += 1
        if self._steps % self._every_steps:
            return _Wish(checkpoint=False, stop=Stop.NO)
        due = self.context.rank == 0 and time.monotonic() - self.last >= self.every_s
        wish = torch.tensor([int(due), int(self.context.stop())])
        if self.context.world_size > 1:
            distributed.all_reduce(wish, distributed.ReduceOp.MAX, group=self._group)
        return _Wish(checkpoint=bool(wish[0]), stop=Stop(int(wish[1])))


class _FiniteCheck:
    """Stops all ranks before the optimiser's step when a loss is not finite.

    The gradients of all ranks are summed, so one that is not finite makes the norm so on every
    rank, and all of them find it without a further exchange. On a GPU the optimiser is told on
    the device to leave the step out and the processor looks only now and then, so that it does
    not wait for the device in every step.
    """

    EVERY = 50

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.optimizer = optimizer
        self.lazy = device.type == "cuda"
        self.first_bad = torch.full((2,), -1, dtype=torch.int64, device=device)
        self._steps = 0

    def before_step(self, norm: Tensor, epoch: int, batch: int) -> None:
        bad = ~torch.isfinite(norm)
        if not self.lazy:
            if bad:
                self._fail(epoch, batch)
            return
        self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        here = torch.tensor([epoch, batch], device=norm.device)
        fresh = bad & (self.first_bad[0] < 0)
        self.first_bad = torch.where(fresh, here, self.first_bad)
        self._steps += 1
        if self._steps % self.EVERY == 0:
            self.check()

    def check(self) -> None:
        """Looks whether a step was left out."""
        if self.lazy and int(self.first_bad[0]) >= 0:
            epoch, batch = self.first_bad.tolist()
            self._fail(epoch, batch)

    @staticmethod
    def _fail(epoch: int, batch: int) -> None:
        raise TrainingError(
            f"The loss or its gradient is not finite in epoch {epoch + 1}, step {batch + 1}. "
            f"Lower --optim.lr-head and --optim.lr-backbone, or set --precision fp32."
        )
