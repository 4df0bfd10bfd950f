"""Devices and the precision they compute in."""

from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    if capabilities:
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    # Before torch 2.12 there was no public way to ask.
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def computes_in(precision: Precision, device: torch.device) -> torch.dtype:
    """The type of the network's activations."""
    short = precision == "bf16" or (precision == "auto" and computes_in_bf16(device))
    return torch.bfloat16 if short else torch.float32


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """A context in which the network computes as the precision says."""
    enabled = computes_in(precision, device) == torch.bfloat16
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def set_tf32(allowed: bool) -> None:
    """Says whether fp32 products on a GPU may round their factors to TF32."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
