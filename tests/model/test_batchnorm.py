"""Batch normalisation over the batch of two processes."""

from pathlib import Path

import pytest
import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing

from drone.model.batchnorm import GlobalBatchNorm2d, set_silent

PICTURES = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double)


def _rank(rank: int, folder: Path, silent: bool) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    layer = GlobalBatchNorm2d(4).double().train()
    # The second rank has a picture of its own, or goes along with one that does not count.
    own = PICTURES[:2] if rank == 0 else PICTURES[2:]
    set_silent(layer, silent and rank == 1)
    images = own.clone().requires_grad_()
    found = layer(images)
    weight = 0.0 if silent and rank == 1 else 1.0
    (weight * found.square().mul(torch.arange(25).view(5, 5)).sum()).backward()
    torch.save((found.detach(), images.grad, layer.running_var), folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("silent", [False, True])
def test_it_normalises_by_the_pictures_that_count(tmp_path: Path, silent: bool) -> None:
    multiprocessing.spawn(_rank, (tmp_path, silent), nprocs=2, join=True)
    counted = PICTURES[:2] if silent else PICTURES
    images = counted.clone().requires_grad_()
    layer = torch.nn.BatchNorm2d(4).double().train()
    expected = layer(images)
    expected.square().mul(torch.arange(25).view(5, 5)).sum().backward()
    outputs, gradients, variances = zip(
        *(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True
    )
    together = torch.cat(outputs)[: len(counted)]
    torch.testing.assert_close(together, expected.detach())
    torch.testing.assert_close(torch.cat(gradients)[: len(counted)], images.grad)
    assert all(torch.allclose(variance, layer.running_var) for variance in variances)
    if silent:
        assert not gradients[1].any()
