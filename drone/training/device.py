"""Devices and the precision they compute in."""

from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]


def _supports_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    if capabilities:
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    # Before torch 2.12 there was no public way to ask.
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def activation_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type of the network's activations: "auto" is bf16 where the device computes in it."""
    uses_bf16 = precision == "bf16" or (precision == "auto" and _supports_bf16(device))
    return torch.bfloat16 if uses_bf16 else torch.float32


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """A context in which the network computes in the given precision."""
    enabled = activation_dtype(precision, device) == torch.bfloat16
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def set_tf32(allowed: bool) -> None:
    """Sets whether fp32 matrix products on a GPU may round their factors to TF32."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
