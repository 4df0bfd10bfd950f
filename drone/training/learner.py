"""The model in training: its weights, the optimiser and the moving average."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from drone.model.mobilenet import Classifier
from drone.training.checkpoint import StateDict, Tensors
from drone.training.config import TrainConfig
from drone.training.finite_check import FiniteCheck
from drone.training.optim import MovingAverage, build_optimizer, set_learning_rates
from drone.training.schedule import learning_rates


class Learner:
    """Takes optimiser steps; knows nothing of data, epochs or reports."""

    def __init__(
        self, config: TrainConfig, model: Classifier, device: torch.device, steps_per_epoch: int
    ) -> None:
        """Builds the optimiser and the moving average.

        Args:
            config: Config of the run.
            model: Model on the device, with its starting weights and batch statistics.
            device: Device that this rank computes on.
            steps_per_epoch: Optimiser steps of an epoch.
        """
        self.model = model
        self._config, self._steps_per_epoch = config, steps_per_epoch
        self._optimizer = build_optimizer(model, config.optim)
        decay = config.optim.ema_decay
        self._average = MovingAverage(model, decay) if decay else None
        self._finite = FiniteCheck(self._optimizer, device)
        # Placeholder until the first validation: a checkpoint within epoch 1 needs one too.
        self.best = self.evaluated_weights()
        self.network: nn.Module = model

    @property
    def evaluated(self) -> Classifier:
        """The weights that validation sees: the moving average, if there is one."""
        return self._average.model if self._average else self.model

    def distribute(self, world_size: int) -> None:
        """Wraps the model for gradient exchange between ranks, and compiles it if configured."""
        if world_size > 1:
            # A micro-batch uses the resizer of its own image size alone.
            several = self.model.resizer is not None
            self.network = DistributedDataParallel(
                self.model, gradient_as_bucket_view=not several, find_unused_parameters=several
            )
        if self._config.compile:
            self.network = torch.compile(self.network)  # type: ignore[assignment]

    def start_step(self, step: int) -> None:
        """Sets the learning rates of a step and clears the gradients."""
        rates = learning_rates(self._config, step, self._steps_per_epoch)
        set_learning_rates(self._optimizer, rates)
        self._optimizer.zero_grad(set_to_none=True)

    def without_exchange(self) -> AbstractContextManager[object]:
        """A context in which this rank's gradients stay on it."""
        if not isinstance(self.network, DistributedDataParallel):
            return nullcontext()
        context: AbstractContextManager[object] = self.network.no_sync()
        return context

    def finish_step(self, epoch: int, batch: int) -> None:
        """Clips the gradient, checks that it is finite, and updates the weights.

        Raises:
            TrainingError: The gradient is not finite; the weights are unchanged.
        """
        # Resizers of sizes that are not in this step have no gradient.
        parameters = [value for value in self.model.parameters() if value.grad is not None]
        # Without a limit clipping only measures the norm, which the check needs.
        max_norm = self._config.optim.max_grad_norm or float("inf")
        norm: Tensor = nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)
        self._finite.before_step(norm, epoch, batch)
        self._optimizer.step()
        if self._average:
            self._average.update(self.model, epoch * self._steps_per_epoch + batch)

    def check_finite(self) -> None:
        """Raises TrainingError if a step was skipped on a GPU because it was not finite."""
        self._finite.check()

    def evaluated_weights(self) -> StateDict:
        """A copy on the CPU of the weights that validation sees."""
        return _copy(self.evaluated)

    def tensors(self) -> Tensors:
        """Everything that a checkpoint keeps of the model."""
        weights = {"model": _copy(self.model)}
        if self._average:
            weights["average"] = _copy(self._average.model)
        return Tensors(weights, self._optimizer.state_dict(), self.best)

    def load(self, tensors: Tensors) -> None:
        """Restores what `tensors` returned."""
        self.model.load_state_dict(tensors.weights["model"])
        if self._average:
            self._average.model.load_state_dict(tensors.weights["average"])
        self._optimizer.load_state_dict(tensors.optimizer)
        self.best = tensors.best


def _copy(model: Classifier) -> StateDict:
    # clone(), because cpu() copies nothing on a CPU and training updates these tensors in place.
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
