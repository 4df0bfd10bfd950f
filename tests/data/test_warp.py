"""The OpenCV warp and the torch warp give the same image."""

import torch

from drone.data import warp as module
from drone.data.warp import warp

GENERATOR = torch.Generator().manual_seed(0)
PIXELS = torch.randint(0, 256, (12, 40, 64, 3), dtype=torch.uint8, generator=GENERATOR)
IDENTITY = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).repeat(12, 1, 1)


def test_the_identity_changes_nothing() -> None:
    assert torch.equal(warp(PIXELS, IDENTITY, {}), PIXELS)


def test_a_mirror_image_and_a_shift_by_whole_pixels() -> None:
    mirror = IDENTITY * torch.tensor([[-1.0, 1, 1], [1, 1, 1]])
    assert torch.equal(warp(PIXELS, mirror, {}), PIXELS.flip(2))
    shift = IDENTITY.clone()
    shift[:, 0, 2] = 2 * 3 / 64  # Three pixels to the left.
    assert torch.equal(warp(PIXELS, shift, {})[:, :, :61], PIXELS[:, :, 3:])


def test_processor_and_gpu_agree_but_for_rounding() -> None:
    theta = IDENTITY + 0.4 * (torch.rand((12, 2, 3), generator=GENERATOR) - 0.5)
    displacements = {4: 0.1 * (torch.rand((40, 64, 2), generator=GENERATOR) - 0.5)}
    on_cpu = warp(PIXELS, theta, displacements).int()
    on_gpu = module._warp_gpu(PIXELS, theta, displacements).int()  # Runs on a CPU too.
    difference = (on_cpu - on_gpu).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01
    assert ((on_cpu[4] - warp(PIXELS, theta, {})[4]).abs() > 1).any()
