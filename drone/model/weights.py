"""Starting weights of the backbone: ImageNet, a file, or random."""

import hashlib
import io
import pickle
import socket
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
        if not self.data:
            return None
        try:
            state = torch.load(io.BytesIO(self.data), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            raise WeightsError(
                f"{self.pretrained} cannot be loaded as a file of weights "
                f"({type(error).__name__}): it is damaged or holds more than tensors. Save one "
                f"with torch.save(model.state_dict(), FILE)."
            ) from error
        if not isinstance(state, Mapping) or "features.0.0.weight" not in state:
            raise WeightsError(
                f"{self.pretrained} does not hold a state dict of torchvision's mobilenet_v2. "
                f"Save one with torch.save(model.state_dict(), FILE)."
            )
        return state


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
    try:
        weights = Weights(pretrained=Path(source).name, data=Path(source).read_bytes())
    except OSError as error:
        raise WeightsError(
            f"The weights {source} cannot be read: {error.strerror}. --weights takes imagenet, "
            f"none or the path of a file."
        ) from error
    weights.state()  # Fails here rather than later on a worker.
    return weights


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
