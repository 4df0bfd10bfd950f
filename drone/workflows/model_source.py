"""The ONNX file of the model that a user names: exported, registered or a run's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from drone.errors import ConfigError
from drone.serving.checksum import check_exported


class ModelSource(Protocol):
    """A request that names a model, by exactly one of these."""

    @property
    def model(self) -> str | None:
        """URI of a registered model."""

    @property
    def run(self) -> str | None:
        """Run, by id or name."""

    @property
    def onnx(self) -> Path | None:
        """Exported model."""

    @property
    def experiment(self) -> str:
        """Experiment in MLflow."""


@dataclass(frozen=True)
class NamedModel:
    """A `ModelSource` of a single text."""

    text: str
    experiment: str

    @property
    def model(self) -> str | None:
        """The text, if it is a URI of a registered model."""
        return self.text if self.text.startswith("models:/") else None

    @property
    def onnx(self) -> Path | None:
        """The text, if it is a file's name."""
        return Path(self.text) if self.text.endswith(".onnx") else None

    @property
    def run(self) -> str | None:
        """The text, if it is neither."""
        return None if self.model or self.onnx else self.text


@dataclass(frozen=True)
class FetchedModel:
    """A model's file."""

    onnx: Path
    name: str = ""
    """Of the registered model or the run; empty for an exported file."""

    version: str = ""
    """Of the registered model; may be empty."""


def fetch_model(source: ModelSource, folder: Path) -> FetchedModel:
    """Returns the model's file, as it is or downloaded, after comparing it with its checksum.

    Args:
        source: What names the model.
        folder: Folder for a download.

    Raises:
        ConfigError: There is no such file.
        RunError: There is no such model, or its file is not the one that was logged.
    """
    if source.onnx is not None:
        if not source.onnx.is_file():
            raise ConfigError(f"There is no file {source.onnx} for --onnx.")
        check_exported(source.onnx)
        return FetchedModel(source.onnx)
    # MLflow takes seconds to import, which an exported model does not need.
    from drone.tracking import model as tracked_model
    from drone.tracking import runs

    runs.connect(source.experiment)
    model = tracked_model.resolve_model(source.model, source.run)
    return FetchedModel(tracked_model.fetch_onnx(model, folder), model.name, model.version)
