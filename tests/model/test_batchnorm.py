"""Batch normalisation over the batch of two processes."""

from pathlib import Path

import pytest
import torch
import torch.distributed as distributed

from drone.model.batchnorm import GlobalBatchNorm2d, set_padding
from tests.job_process import run_two_ranks

IMAGES = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double)


def _run_rank(rank: int, folder: Path, padding: bool) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    layer = GlobalBatchNorm2d(4).double().train()
    # The second rank's only image either counts or is padding.
    shard = IMAGES[:2] if rank == 0 else IMAGES[2:]
    set_padding(layer, padding and rank == 1)
    images = shard.clone().requires_grad_()
    output = layer(images)
    weight = 0.0 if padding and rank == 1 else 1.0
    (weight * output.square().mul(torch.arange(25).view(5, 5)).sum()).backward()
    torch.save((output.detach(), images.grad, layer.running_var), folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("padding", [False, True])
def test_padding_does_not_count_in_batch_statistics(tmp_path: Path, padding: bool) -> None:
    run_two_ranks(_run_rank, (tmp_path, padding))
    counted = IMAGES[:2] if padding else IMAGES
    images = counted.clone().requires_grad_()
    layer = torch.nn.BatchNorm2d(4).double().train()
    expected = layer(images)
    expected.square().mul(torch.arange(25).view(5, 5)).sum().backward()
    outputs, gradients, variances = zip(
        *(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True
    )
    torch.testing.assert_close(torch.cat(outputs)[: len(counted)], expected.detach())
    torch.testing.assert_close(torch.cat(gradients)[: len(counted)], images.grad)
    assert all(torch.allclose(variance, layer.running_var) for variance in variances)
    if padding:
        assert not gradients[1].any()
