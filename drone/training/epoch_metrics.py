"""Sums over an epoch from which its metrics follow."""

from collections.abc import Sequence

import torch
import torch.distributed as distributed
from torch import Tensor

from drone.labels import ClassSet
from drone.names import key


class EpochMetrics:
    """Loss and confusion matrix of an epoch on one rank; they add up over batches and ranks."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        """Starts with zeros."""
        self.num_classes = num_classes
        # The loss is last, so that one tensor holds everything and one collective sums it.
        self._sums = torch.zeros(num_classes**2 + 1, dtype=torch.float64, device=device)

    def add(self, loss_sum: Tensor, predicted_N: Tensor, labels_N: Tensor) -> None:
        """Counts a batch.

        Args:
            loss_sum: Sum of the losses of its images.
            predicted_N: Predicted class indices.
            labels_N: True class indices.
        """
        cells_N = labels_N * self.num_classes + predicted_N
        ones_N = torch.ones_like(cells_N, dtype=torch.float64)
        self._sums.index_add_(0, cells_N, ones_N)
        self._sums[-1] += loss_sum

    def reduced(self) -> "EpochMetrics":
        """The sums over all ranks."""
        total = EpochMetrics(self.num_classes, self._sums.device)
        # A copy: summed in place, the other ranks' images would be counted again later.
        total._sums = self._sums.clone()
        if distributed.is_initialized():
            distributed.all_reduce(total._sums)
        return total

    def state(self) -> list[float]:
        """The sums as plain numbers, for a checkpoint."""
        return [float(value) for value in self._sums.tolist()]

    def load_state(self, state: Sequence[float]) -> None:
        """Restores what `state` returned."""
        self._sums.copy_(torch.tensor(state, dtype=torch.float64))

    @property
    def confusion_KK(self) -> Tensor:
        """Images by true class (row) and predicted class (column)."""
        return self._sums[:-1].view(self.num_classes, -1).cpu()

    def metrics(self, prefix: str, classes: ClassSet) -> dict[str, float]:
        """Loss, accuracy, macro F1, predicted classes and recall by class, named "prefix/...".

        A class without images has recall 0; F1 is 2 TP / (2 TP + FP + FN), 0 where that has
        no denominator.
        """
        confusion = self.confusion_KK
        total = confusion.sum().clamp_min(1)
        hits_K = confusion.diagonal()
        true_K, predicted_K = confusion.sum(dim=1), confusion.sum(dim=0)
        f1_K = 2 * hits_K / (true_K + predicted_K).clamp_min(1)
        recall_K = hits_K / true_K.clamp_min(1)
        metrics = {
            f"{prefix}/loss": float(self._sums[-1].cpu() / total),
            f"{prefix}/accuracy": float(hits_K.sum() / total),
            f"{prefix}/macro_f1": float(f1_K.mean()),
            f"{prefix}/predicted_classes": int((predicted_K > 0).sum()),
        }
        for name, recall in zip(classes.short_names, recall_K.tolist(), strict=True):
            metrics[f"{prefix}/recall_{key(name)}"] = recall
        return metrics
