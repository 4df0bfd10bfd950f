"""Random numbers that are a function of what they are for, not of what was drawn before.

The number for (seed, epoch, picture, use) is the same on every machine, whatever the order of
batches, the number of workers or a resumption in between.
"""

import torch
from torch import Tensor

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _signed(value: int) -> int:
    """The 64 bits of `value` as the signed integer that torch holds."""
    value &= _MASK
    return value - 2**64 if value >= 2**63 else value


_MIX_1, _MIX_2, _STEP = (
    _signed(value) for value in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, _GOLDEN)
)


def _shifted(bits: Tensor, count: int) -> Tensor:
    """Logical right shift (torch's own keeps the sign)."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014) on int64, wrapping around."""
    bits = (bits ^ _shifted(bits, 30)) * _MIX_1
    bits = (bits ^ _shifted(bits, 27)) * _MIX_2
    return bits ^ _shifted(bits, 31)


def uniform(seed: int, epoch: int, use: int, keys_N: Tensor, columns: int) -> Tensor:
    """Uniform numbers in [0, 1), (N, columns) float32, on the device of the keys.

    Args:
        seed: of the run.
        epoch: of the view.
        use: a small number that tells one use of noise from another.
        keys_N: int64, one a picture.
        columns: how many numbers each picture needs.
    """
    start = torch.tensor(_signed(seed * _GOLDEN + use), dtype=torch.int64, device=keys_N.device)
    state_N = _mix(_mix(_mix(start) + epoch) ^ keys_N)
    steps = torch.arange(1, columns + 1, dtype=torch.int64, device=keys_N.device) * _STEP
    bits = _mix(state_N[:, None] + steps)
    return _shifted(bits, 40).to(torch.float32) / 2**24
