"""Counter-based random numbers: a function of what they are for, not of earlier draws.

The idea is that of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": hash a
counter instead of advancing a state. The number for (seed, epoch, image, stream) is therefore the
same on every machine, whatever the order of batches, the number of workers or a resumption in
between.
"""

import torch
from torch import Tensor

_MASK = 2**64 - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
"""Increment of SplitMix64: 2^64 divided by the golden ratio."""


def _signed(value: int) -> int:
    """Returns the low 64 bits of `value` as the signed integer that torch stores."""
    value &= _MASK
    return value - 2**64 if value >= 2**63 else value


_MULTIPLIER_1, _MULTIPLIER_2, _INCREMENT = (
    _signed(value) for value in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, _GOLDEN_GAMMA)
)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Shifts in zeros; torch's own operator copies the sign bit."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """Applies the finaliser of SplitMix64 (Steele, Lea and Flood 2014) to int64, wrapping."""
    bits = (bits ^ _shift_right(bits, 30)) * _MULTIPLIER_1
    bits = (bits ^ _shift_right(bits, 27)) * _MULTIPLIER_2
    return bits ^ _shift_right(bits, 31)


def uniform(seed: int, epoch: int, stream: int, keys_N: Tensor, num_columns: int) -> Tensor:
    """Returns uniform numbers in [0, 1), (N, num_columns) float32, on the device of the keys.

    Args:
        seed: Seed of the run.
        epoch: Epoch that the numbers are for.
        stream: Small number that separates one purpose from another; see its callers.
        keys_N: One int64 key per image.
        num_columns: How many numbers each image needs. The first ones do not depend on it.
    """
    start = torch.tensor(
        _signed(seed * _GOLDEN_GAMMA + stream), dtype=torch.int64, device=keys_N.device
    )
    state_N = _mix(_mix(_mix(start) + epoch) ^ keys_N)
    counters = torch.arange(1, num_columns + 1, dtype=torch.int64, device=keys_N.device)
    bits = _mix(state_N[:, None] + counters * _INCREMENT)
    # float32 represents 24 bits exactly, so 1.0 itself never comes out.
    return _shift_right(bits, 40).to(torch.float32) / 2**24
