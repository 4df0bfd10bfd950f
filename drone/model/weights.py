"""Where a model's starting weights come from."""

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

SOURCE = MobileNet_V2_Weights.IMAGENET1K_V1
"""The weights that the original project started from too."""


_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Weights:
    """Starting weights of the backbone.

    They travel to the workers as bytes, so that only one process reads or downloads them.
    """

    origin: str
    """"imagenet", "none" or the file's name."""

    data: bytes
    """The file; empty for random weights."""

    @property
    def sha256(self) -> str:
        """Of the file, hexadecimal; empty for random weights."""
        return hashlib.sha256(self.data).hexdigest() if self.data else ""

    @property
    def pretrained(self) -> str:
        """What runs are tagged with: "none" for random weights."""
        return self.origin

    def state(self) -> Mapping[str, Tensor] | None:
        """State of torchvision's mobilenet_v2, or None for random weights.

        Raises:
            WeightsError: the file is no state of tensors.
        """
        if not self.data:
            return None
        try:
            state = torch.load(io.BytesIO(self.data), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            raise WeightsError(
                f"{self.origin} is not a file of weights that can be read safely "
                f"({type(error).__name__}). Save one with torch.save(model.state_dict(), FILE)."
            ) from error
        if not isinstance(state, Mapping) or "features.0.0.weight" not in state:
            raise WeightsError(
                f"{self.origin} does not hold a state dict of torchvision's mobilenet_v2."
            )
        return state


def load(source: str) -> Weights:
    """The weights that `--weights` names.

    Args:
        source: "imagenet" (torchvision's file, downloaded once and then kept), "none" (random)
            or the path of a file.

    Raises:
        WeightsError: the file cannot be read, or the download failed; it names the ways on.
    """
    if source == "none":
        return Weights(origin="none", data=b"")
    if source == "imagenet":
        return Weights(origin="imagenet", data=_download())
    try:
        weights = Weights(origin=Path(source).name, data=Path(source).read_bytes())
    except OSError as error:
        raise WeightsError(
            f"The weights {source} cannot be read: {error.strerror}. --weights takes imagenet, "
            f"none or the path of a file."
        ) from error
    weights.state()  # Fails here, and not on a worker.
    return weights


def cache_file() -> Path:
    """Where torchvision keeps its download."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(SOURCE.url).name


def _download() -> bytes:
    patience_s = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)  # The download itself would wait for ever.
    try:
        SOURCE.get_state_dict(progress=True, check_hash=True, weights_only=True)
        return cache_file().read_bytes()
    except (URLError, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        raise WeightsError(
            f"The ImageNet weights could not be downloaded from {SOURCE.url} ({reason}). "
            f"Three ways on: download that file elsewhere and pass --weights FILE; set "
            f"DRONE_WEIGHTS=FILE for all commands; or pass --weights none to start from random "
            f"weights, which needs far more pictures and time."
        ) from error
    finally:
        socket.setdefaulttimeout(patience_s)
