"""The training loop: the only one, whoever launches it.

Every rank runs it with the same arguments and a context of its own. The global batches, augmented
views and dropout masks do not depend on the number of ranks; losses and counts are summed over
ranks and divided once. So the number of workers changes the speed and not the result.
"""

import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as distributed
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor

from drone.config import to_dict
from drone.errors import Interrupted, RunError
from drone.model.batchnorm import set_padding
from drone.model.inference import probabilities_at_cut
from drone.model.mobilenet import Classifier
from drone.training import checkpoint, predictions
from drone.training.activation_cache.store import CacheSpec
from drone.training.best_epoch import History, epoch_rank
from drone.training.checkpoint import Identity, Position
from drone.training.config import TrainConfig
from drone.training.context import Context, Progress, Stop
from drone.training.control import Agreement, Control
from drone.training.data import TrainingData
from drone.training.device import autocast, set_tf32
from drone.training.early_stopping import EarlyStopping
from drone.training.epoch_metrics import EpochMetrics
from drone.training.inputs import Inputs
from drone.training.learner import Learner
from drone.training.loss import losses
from drone.training.memory import keep_freed_memory
from drone.training.schedule import learning_rates


class Preempted(Exception):
    """A worker's machine is going away; a checkpoint was written, the launcher restarts."""


def fit(
    config: TrainConfig,
    data: TrainingData,
    model: Classifier,
    context: Context,
    cache: CacheSpec | None = None,
    commit: str = "unknown",
    *,
    keep_predictions: bool = False,
) -> History:
    """Trains a model, or resumes from the context's checkpoint.

    Args:
        config: What to compute.
        data: Training and validation images.
        model: Model with its starting weights; the same on every rank.
        context: Rank, device, reports, stops.
        cache: Activation cache for the frozen blocks; None computes them in each step. It changes
            the speed and no number.
        commit: Git commit of the program, for the checkpoint.
        keep_predictions: Whether each entry holds the predictions of the validation images, in
            their order, as `predictions.encode` writes them.

    Returns:
        An entry for each epoch. The checkpoint that was reported last holds the weights of the
        best epoch on validation.

    Raises:
        TrainingError: A loss is not finite (every rank raises it before the optimiser's step), or
            early stopping ended the run, after a checkpoint.
        Interrupted: The context asked to stop; a checkpoint was written.
        Preempted: A worker's machine is going away; a checkpoint was written.
    """
    keep_freed_memory()
    set_tf32(False)  # fp32 means fp32; bf16 is the setting for speed.
    return _Run(config, data, model, context, cache, commit, keep_predictions).train()


class _Run:
    """A run on one rank: its inputs, its learner and its position."""

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        model: Classifier,
        context: Context,
        cache: CacheSpec | None,
        commit: str,
        keep_predictions: bool,
    ) -> None:
        self.config, self.data, self.context = config, data, context
        self.keep_predictions = keep_predictions
        self.identity = Identity(to_dict(config), data.classes.names, data.fingerprint, commit)
        model = model.to(context.device)
        # Before _resume: the activation cache copies the starting weights and names views by them.
        self.inputs = Inputs(config, data, model, context.device, cache)
        self.learner = Learner(config, model, context.device, self.inputs.batches.steps)
        self.position = Position()
        self.metrics = self._no_metrics()
        self._resume()
        self.learner.distribute(context.world_size)
        self.control = Control(config.checkpoint_interval_s, context)
        self.early_stopping = EarlyStopping(config, len(data.classes))

    def train(self) -> History:
        for epoch in range(self.position.epoch, self.config.last_epoch):
            self._train_epoch(epoch)
            self._end_epoch(epoch)
        return self.position.history

    def _no_metrics(self) -> EpochMetrics:
        return EpochMetrics(len(self.data.classes), self.context.device)

    def _train_epoch(self, epoch: int) -> None:
        order = self.inputs.batches.order(self.config.seed, epoch)
        start_s = time.monotonic() - self.position.elapsed_s
        self.learner.network.train()
        for batch in range(self.position.batch, len(order)):
            self._step(epoch, batch, order[batch])
            self.position.batch = batch + 1
            self.position.elapsed_s = time.monotonic() - start_s
            self._report_progress(epoch, len(order))
            # After the last batch, `_end_epoch` does this once the epoch is in the history.
            if batch + 1 < len(order):
                self._follow(self.control.after_step())
        self.learner.check_finite()

    def _step(self, epoch: int, batch: int, positions_B: NDArray[np.int64]) -> None:
        batches = self.inputs.batches
        self.learner.start_step(epoch * batches.steps + batch)
        parts = batches.micro_batches(positions_B, self.context.world_size)
        sides = [int(batches.sides_N[part[0]]) for part in parts]
        for number, part in enumerate(parts):
            # Ranks exchange gradients once per image size: parameters that a pass does not use,
            # those of other sizes, keep what they have.
            last_of_its_size = sides[number] not in sides[number + 1 :]
            with nullcontext() if last_of_its_size else self.learner.without_exchange():
                self._accumulate(epoch, part, len(positions_B))
        self.learner.finish_step(epoch, batch)

    def _accumulate(self, epoch: int, part_P: NDArray[np.int64], batch_size: int) -> None:
        """Adds the gradient of a micro-batch, which is shared over all ranks."""
        context, model = self.context, self.learner.model
        own = part_P[context.rank :: context.world_size]
        counted = len(own)
        if not counted:  # A rank without an image runs along with one that does not count.
            own = part_P[:1]
        if context.world_size > 1:
            set_padding(model.features, not counted)
        activations = self.inputs.activations.train(epoch, own)
        labels_N = self.inputs.train.labels_N[torch.from_numpy(own).to(context.device)]
        keys_N = self.inputs.train.keys_N[own].to(context.device)
        model.key_dropout(self.config.seed, epoch, keys_N)
        with autocast(self.config.precision, context.device):
            logits_NK = self.learner.network(activations, at_cut=True).float()
        logits_NK, labels_N = logits_NK[:counted], labels_N[:counted]
        far_N = self.inputs.far_away(epoch, own)[:counted]
        smoothing = self.config.optim.label_smoothing
        losses_N = losses(logits_NK, labels_N, far_N, self.inputs.roles_RK, smoothing)
        loss_sum = (losses_N * self.inputs.class_weights_K[labels_N]).sum()
        # DDP takes the mean of the ranks' gradients: this makes it the mean over the batch.
        (loss_sum * (context.world_size / batch_size)).backward()  # type: ignore[no-untyped-call]
        self.metrics.add(loss_sum.detach(), logits_NK.detach().argmax(dim=1), labels_N)

    def _report_progress(self, epoch: int, steps: int) -> None:
        if self.context.rank != 0:
            return
        batch, batch_size = self.position.batch, self.inputs.batch_size
        self.context.progress(
            Progress(
                epoch=epoch + 1,
                epochs=self.config.last_epoch,
                step=batch,
                steps=steps,
                batch_size=batch_size,
                images_per_s=batch * batch_size / max(self.position.elapsed_s, 1e-9),
            )
        )

    def _follow(self, agreement: Agreement) -> None:
        """Writes a checkpoint if one is due, and stops if a rank has asked for it."""
        if agreement.checkpoint or agreement.stops:
            self._report()
        _raise_stop(agreement.stop)

    def _end_epoch(self, epoch: int) -> None:
        metrics, probs_VK = self._epoch_metrics(epoch)
        self._remember_best(epoch + 1, metrics)
        # The time is fixed here and saved, so that a replay gives the tracker the same point.
        entry = {"epoch": epoch + 1, "time_ms": int(time.time() * 1000), "metrics": metrics}
        if self.keep_predictions:
            entry["predictions"] = predictions.encode(probs_VK.cpu().numpy())
        history = [*self.position.history, entry]
        self.position = Position(epoch=epoch + 1, history=history, best=self.position.best)
        self.metrics = self._no_metrics()
        agreement = self.control.after_step()
        due = self.context.checkpoint_each_epoch or agreement.checkpoint or agreement.stops
        self._report(save=due)
        # After the last epoch there is nothing left to stop.
        if epoch + 1 < self.config.last_epoch:
            # After the report, so that the launcher has this epoch before the run ends.
            self.early_stopping.check(self.position.history)
            _raise_stop(agreement.stop)

    def _epoch_metrics(self, epoch: int) -> tuple[dict[str, float], Tensor]:
        steps = self.inputs.batches.steps
        metrics = self.metrics.reduced().metrics("train", self.data.classes)
        validation, probs_VK = self._validate()
        metrics |= validation
        for name, rate in learning_rates(self.config, (epoch + 1) * steps - 1, steps).items():
            metrics[f"lr/{name}"] = rate
        images = steps * self.inputs.batch_size
        metrics["speed/images_per_s"] = images / max(self.position.elapsed_s, 1e-9)
        metrics["speed/epoch_s"] = self.position.elapsed_s
        return metrics, probs_VK

    def _remember_best(self, epoch: int, metrics: dict[str, float]) -> None:
        if not len(self.inputs.validation):
            self.position.best = {"epoch": epoch}
            self.learner.best = self.learner.evaluated_weights()
            return
        score, loss = metrics["validation/macro_f1"], metrics["validation/loss"]
        best, by = self.position.best, self.config.best_epoch_by
        if best and epoch_rank(score, loss, by) <= epoch_rank(best["macro_f1"], best["loss"], by):
            return
        self.position.best = {"epoch": epoch, "macro_f1": score, "loss": loss}
        self.learner.best = self.learner.evaluated_weights()

    @torch.no_grad()
    def _validate(self) -> tuple[dict[str, float], Tensor]:
        """Metrics and probabilities, (V, K), on validation; each image is predicted on one rank."""
        device, split = self.context.device, self.inputs.validation
        model, metrics = self.learner.evaluated.eval(), self._no_metrics()
        probs_VK = torch.zeros(len(split), len(self.data.classes), device=device)
        if not len(split):
            return {}, probs_VK
        for positions in self.inputs.validation_batches(self.context.rank, self.context.world_size):
            labels_N = split.labels_N[torch.from_numpy(positions).to(device)]
            with autocast(self.config.precision, device):
                activations = self.inputs.activations.validation(model, positions)
                probs_NK = probabilities_at_cut(model, activations)
            probs_VK[torch.from_numpy(positions).to(device)] = probs_NK
            loss_sum = functional.nll_loss(
                probs_NK.clamp_min(1e-12).log(), labels_N, reduction="sum"
            )
            metrics.add(loss_sum, probs_NK.argmax(dim=1), labels_N)
        if self.keep_predictions and self.context.world_size > 1:
            distributed.all_reduce(probs_VK)  # Zeros wherever another rank predicts.
        return metrics.reduced().metrics("validation", self.data.classes), probs_VK

    def _report(self, save: bool = True) -> None:
        """Reports the history, usually with a checkpoint; all ranks together."""
        self.learner.check_finite()
        if save:
            self.control.restart_timer()
        # A collective, so every rank must reach it before the others return below.
        sums = self.metrics.reduced().state()
        if self.context.rank != 0 or not save:
            self.context.report(self.position.history, None)
            return
        position = replace(self.position, metric_sums=sums)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "checkpoint"
            checkpoint.save(folder, position, self.identity, self.learner.tensors())
            self.context.report(self.position.history, folder)

    def _resume(self) -> None:
        folder = self.context.resume_from()
        if folder is None:
            return
        position, identity, tensors = checkpoint.load(folder)
        if identity.fingerprint != self.data.fingerprint:
            raise RunError(
                f"Cannot resume from {folder}: it was trained on the data set "
                f"{identity.fingerprint[:12]}, this one is {self.data.fingerprint[:12]}. Resume "
                f"with the data set that the run started on."
            )
        self.learner.load(tensors)
        self.position = position
        if self.context.rank == 0 and position.metric_sums:  # The sums of all ranks go to one.
            self.metrics.load_state(position.metric_sums)


def _raise_stop(stop: Stop) -> None:
    """Ends the run if a rank has asked for it; a checkpoint must have been written."""
    if stop is Stop.INTERRUPTED:
        raise Interrupted("Training was stopped; its checkpoint is kept.")
    if stop is Stop.PREEMPTED:
        raise Preempted
