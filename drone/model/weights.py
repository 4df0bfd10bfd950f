"""Starting weights of the backbone: ImageNet, a file, or random."""

import hashlib
import io
import socket
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision.models import MobileNet_V2_Weights

from drone.errors import WeightsError

_IMAGENET = MobileNet_V2_Weights.IMAGENET1K_V1
"""The weights that the original project started from too."""

_TIMEOUT_S = 30.0
_SAVE_ONE = "Save one with torch.save(model.state_dict(), FILE)."


@dataclass(frozen=True)
class Weights:
    """Starting weights of the backbone.

    They travel to the workers as bytes, so that only one process reads or downloads them.
    """

    pretrained: str
    """"imagenet", "none" or the name of a file; runs are tagged with it."""

    data: bytes
    """Content of the file; empty for random weights."""

    @property
    def sha256(self) -> str:
        """Checksum of the file, hexadecimal; empty for random weights."""
        return hashlib.sha256(self.data).hexdigest() if self.data else ""

    def state(self) -> Mapping[str, Tensor] | None:
        """Returns the state dict of torchvision's mobilenet_v2, or None for random weights.

        Raises:
            WeightsError: The file does not hold such a state dict.
        """
        if self.pretrained == "none":
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Advice to load it in an unsafe way.
                state = torch.load(io.BytesIO(self.data), map_location="cpu", weights_only=True)
        # A damaged file can make the unpickler raise anything.
        except Exception as error:
            raise WeightsError(
                f"{self.pretrained} cannot be loaded as a file of weights "
                f"({type(error).__name__}): it is damaged or holds more than tensors. {_SAVE_ONE}"
            ) from error
        if not isinstance(state, Mapping) or "features.0.0.weight" not in state:
            raise WeightsError(
                f"{self.pretrained} does not hold a state dict of torchvision's mobilenet_v2. "
                f"{_SAVE_ONE}"
            )
        for name, value in state.items():
            problem = _problem(name, value)
            if problem:
                raise WeightsError(f"{self.pretrained}: {name} {problem}. {_SAVE_ONE}")
        return state


def _problem(name: object, value: object) -> str | None:
    """Returns why an entry of a state dict cannot be used; None if it can."""
    if not isinstance(name, str):
        return "is no name of a layer"
    if not name.startswith("features."):
        return None  # The classifier of other classes, which is not used.
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
        return "is no array of numbers"
    if name.endswith("num_batches_tracked"):
        return None
    if not value.is_floating_point():
        return f"has the type {value.dtype} instead of floating point"
    if not value.float().isfinite().all():
        return "has values that are not finite"
    return None


def load(source: str) -> Weights:
    """Loads the weights that `--weights` names.

    Args:
        source: "imagenet" (torchvision's file, downloaded once and then cached), "none" (random)
            or the path of a file.

    Raises:
        WeightsError: The file cannot be read, or the download failed.
    """
    if source == "none":
        return Weights(pretrained="none", data=b"")
    if source == "imagenet":
        return Weights(pretrained="imagenet", data=_download())
    weights = Weights(pretrained=Path(source).name, data=_read(source))
    weights.state()  # Fails here rather than later on a worker.
    return weights


def _read(source: str) -> bytes:
    """Returns the content of a file, which is what else --weights takes."""
    if not source:
        raise WeightsError("--weights is empty: name imagenet, none or the path of a file.")
    try:
        # Not a pipe or a device, which could block or never end.
        if not stat.S_ISREG(Path(source).stat().st_mode):
            raise WeightsError(f"The weights {source} are not a file. {_SAVE_ONE}")
        data = Path(source).read_bytes()
    except OSError as error:
        raise WeightsError(
            f"The weights {source} cannot be read: {error.strerror}. --weights takes imagenet, "
            f"none or the path of a file."
        ) from error
    if not data:
        raise WeightsError(f"The weights {source} are an empty file. {_SAVE_ONE}")
    if Path(source).name in ("imagenet", "none"):
        raise WeightsError(f"The file {source} is named like a kind of weights; rename it.")
    return data


def _download() -> bytes:
    """Returns torchvision's file, from its cache if it is there."""
    default_timeout_s = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)  # torch's download has no timeout of its own.
    try:
        _IMAGENET.get_state_dict(progress=True, check_hash=True, weights_only=True)
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(_IMAGENET.url).name
        return cached.read_bytes()
    except (URLError, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        raise WeightsError(
            f"The ImageNet weights could not be downloaded from {_IMAGENET.url} ({reason}). "
            f"Either download that file elsewhere and pass --weights FILE, or set "
            f"DRONE_WEIGHTS=FILE for all commands, or pass --weights none to start from random "
            f"weights, which needs far more images and time."
        ) from error
    finally:
        socket.setdefaulttimeout(default_timeout_s)
