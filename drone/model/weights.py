"""Starting weights of the backbone: ImageNet, a file, or random."""

import functools
import hashlib
import io
import socket
import stat
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

from drone.errors import WeightsError

_IMAGENET = MobileNet_V2_Weights.IMAGENET1K_V1
"""The weights that the original project started from too."""

_BACKBONE, _COUNTER = "features.", ".num_batches_tracked"
"""How the names of the backbone begin, and how those of counters end."""

_MAX_SHOWN = 3
"""Maximum number of names in an error."""

_TIMEOUT_S = 30.0
_SAVE_ONE = (
    "Save a mobilenet_v2 with torch.save(model.state_dict(), FILE), or use --weights imagenet."
)


@dataclass(frozen=True)
class Weights:
    """Starting weights of the backbone.

    They travel to the workers as bytes, so that only one process reads or downloads them.
    """

    pretrained: str
    """"imagenet", "none" or the name of a file; runs are tagged with it."""

    data: bytes
    """Content of the file; empty for random weights."""

    is_model: bool = False
    """Whether these are the weights of a whole model, as `of_model` has them."""

    @property
    def sha256(self) -> str:
        """Checksum of the file, hexadecimal; empty for random weights."""
        return hashlib.sha256(self.data).hexdigest() if self.data else ""

    def state(self) -> Mapping[str, Tensor] | None:
        """Returns the state dict of torchvision's mobilenet_v2, or None for random weights.

        The weights of a whole model have the names of `mobilenet.Classifier`, whose backbone is
        called alike.

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
        if not isinstance(state, Mapping):
            raise WeightsError(
                f"{self.pretrained} holds a {type(state).__name__}, not a state dict of "
                f"torchvision's mobilenet_v2. {_SAVE_ONE}"
            )
        problem = _names_problem(state) or next(filter(None, map(_problem, state.items())), None)
        if problem:
            raise WeightsError(f"{self.pretrained}: {problem}. {_SAVE_ONE}")
        if self.is_model:
            return state
        # Whatever else a file has is not meant for this head.
        return {name: value for name, value in state.items() if name.startswith(_BACKBONE)}


def of_model(name: str, state: Mapping[str, Tensor]) -> Weights:
    """Returns the weights of a whole model as starting weights.

    Args:
        name: Where they come from; runs are tagged with it.
        state: State dict of a `mobilenet.Classifier`.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return Weights(name, buffer.getvalue(), is_model=True)


@functools.cache
def _expected_shapes() -> Mapping[str, torch.Size]:
    """Returns the shape of each entry of the backbone's state dict."""
    with torch.device("meta"):
        state = mobilenet_v2().state_dict()
    return {name: value.shape for name, value in state.items() if name.startswith(_BACKBONE)}


def _names_problem(state: Mapping[object, object]) -> str | None:
    """Returns which names a state dict lacks, and which it has instead; None if it has all."""
    expected = _expected_shapes()
    # Older versions of torch did not count batches.
    missing = [name for name in expected if name not in state and not name.endswith(_COUNTER)]
    # The classifier is of other classes and is not used.
    unexpected = [
        name
        for name in map(str, state)
        if name not in expected and (missing or name.startswith(_BACKBONE))
    ]
    if not missing and not unexpected:
        return None
    return (
        f"{_some(missing, 'names')} of torchvision's mobilenet_v2 are missing, and "
        f"{_some(unexpected, 'names')} are unexpected"
    )


def _some(names: Sequence[str], what: str) -> str:
    """Returns the number of names, and the first ones."""
    shown = ", ".join(name[:60] for name in names[:_MAX_SHOWN])
    more = ", ..." if len(names) > _MAX_SHOWN else ""
    return f"{len(names)} {what}" + (f" ({shown}{more})" if names else "")


def _problem(entry: tuple[object, object]) -> str | None:
    """Returns why an entry of a state dict cannot be used; None if it can."""
    name, value = entry
    if not isinstance(name, str):
        return f"{name!r} is no name of a layer"
    if not name.startswith(_BACKBONE):
        return None
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
        return f"{name} is no array of numbers"
    if value.shape != (expected := _expected_shapes()[name]):
        return f"{name} has the shape {tuple(value.shape)} instead of {tuple(expected)}"
    if name.endswith(_COUNTER):
        return None
    if not value.is_floating_point():
        return f"{name} has the type {value.dtype} instead of floating point"
    if not value.float().isfinite().all():
        return f"{name} has values that are not finite"
    return None


def load(source: str, *, may_be_random: bool = True) -> Weights:
    """Loads the weights that `--weights` names.

    Args:
        source: "imagenet" (torchvision's file, downloaded once and then cached), "none" (random)
            or the path of a file.
        may_be_random: Whether errors offer random weights.

    Raises:
        WeightsError: The file cannot be read, or the download failed.
    """
    if source == "none":
        return Weights(pretrained="none", data=b"")
    if source == "imagenet":
        return Weights(pretrained="imagenet", data=_download(may_be_random))
    weights = Weights(pretrained=Path(source).name, data=_read(source, may_be_random))
    weights.state()  # Fails here rather than later on a worker.
    return weights


def _read(source: str, may_be_random: bool) -> bytes:
    """Returns the content of a file, which is what else --weights takes."""
    kinds = "imagenet, none or the path of a file" if may_be_random else "imagenet or a file"
    if not source:
        raise WeightsError(f"--weights is empty: name {kinds}.")
    try:
        # Not a pipe or a device, which could block or never end.
        if not stat.S_ISREG(Path(source).stat().st_mode):
            raise WeightsError(f"The weights {source} are not a file. {_SAVE_ONE}")
        data = Path(source).read_bytes()
    except OSError as error:
        raise WeightsError(
            f"The weights {source} cannot be read: {error.strerror}. --weights takes {kinds}."
        ) from error
    if not data:
        raise WeightsError(f"The weights {source} are an empty file. {_SAVE_ONE}")
    if Path(source).name in ("imagenet", "none"):
        raise WeightsError(f"The file {source} is named like a kind of weights; rename it.")
    return data


def _download(may_be_random: bool) -> bytes:
    """Returns torchvision's file, from its cache if it is there."""
    default_timeout_s = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)  # torch's download has no timeout of its own.
    try:
        _IMAGENET.get_state_dict(progress=True, check_hash=True, weights_only=True)
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(_IMAGENET.url).name
        return cached.read_bytes()
    except (URLError, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        random = ", or start from random weights with --weights none, which needs far more images"
        raise WeightsError(
            f"The ImageNet weights could not be downloaded from {_IMAGENET.url} ({reason}). "
            f"Download that file elsewhere and pass --weights FILE, or set DRONE_WEIGHTS=FILE for "
            f"all commands{random if may_be_random else ''}."
        ) from error
    finally:
        socket.setdefaulttimeout(default_timeout_s)
