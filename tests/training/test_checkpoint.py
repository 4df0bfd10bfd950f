from pathlib import Path

import pytest
import torch

from drone.errors import ConfigError, RunError
from drone.files import seal, unseal
from drone.storage import checkpoints
from drone.storage.filesystem import resolve_writable
from drone.training import checkpoint
from drone.training.checkpoint import Identity, Position, Tensors

IDENTITY = Identity(config={"epochs": 3}, classes=("a", "b"), fingerprint="f", commit="c")


def save(folder: Path, epoch: int, batch: int) -> Path:
    position = Position(epoch=epoch, batch=batch, metric_sums=[1.0], history=[{"epoch": 1}])
    weights = {"model": {"w": torch.ones(2)}}
    tensors = Tensors(weights, {"state": {}}, {"w": torch.zeros(2)})
    checkpoint.save(folder, position, IDENTITY, tensors)
    return folder


def test_a_checkpoint_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint_1", epoch=2, batch=5)
    position, identity, tensors = checkpoint.load(folder)
    assert (position.epoch, position.batch) == (2, 5)
    assert identity == IDENTITY
    assert torch.equal(tensors.weights["model"]["w"], torch.ones(2))
    assert not list(tmp_path.glob(".*"))  # Nothing half-written is left.


@pytest.mark.parametrize("damage", ["cut", "missing", "schema"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    good = save(tmp_path / "checkpoint_1", epoch=1, batch=0)
    bad = save(tmp_path / "checkpoint_2", epoch=2, batch=0)
    if damage == "cut":
        data = (bad / "weights.pt").read_bytes()
        (bad / "weights.pt").write_bytes(data[: len(data) // 2])
    elif damage == "missing":
        (bad / "optimizer.pt").unlink()
    else:
        state = unseal((bad / "state.json").read_bytes(), checkpoint.SCHEMA)
        (bad / "state.json").write_bytes(seal(state, 9))
    with pytest.raises(RunError, match=r"checkpoint_2.*(damaged|schema 9)"):
        checkpoint.load(bad)
    if damage == "schema":  # Started anew, the run would lose its epochs without a word.
        with pytest.raises(RunError, match=r"checkpoint_2: it has schema 9.*Start a new run"):
            checkpoints.newest(str(tmp_path))
    else:
        assert checkpoint.latest(tmp_path) == good
        assert checkpoints.newest(str(tmp_path)).location == str(good)


def test_the_furthest_checkpoint_of_all_attempts(tmp_path: Path) -> None:
    assert checkpoints.newest(str(tmp_path / "nothing")) is None
    save(tmp_path / "attempt_1" / "checkpoint_9", epoch=1, batch=9)
    furthest = save(tmp_path / "attempt_1" / "checkpoint_8", epoch=2, batch=1)
    save(tmp_path / "attempt_2" / "checkpoint_1", epoch=2, batch=0)
    newest = checkpoints.newest(str(tmp_path))
    assert (newest.location, newest.epoch, newest.batch) == (str(furthest), 2, 1)
    assert checkpoints.newest(f"file://{tmp_path}").location == f"file://{furthest}"
    copy = checkpoints.fetch(newest.location, tmp_path / "copy")
    assert checkpoint.load(copy)[0].batch == 1


def test_unusable_storage_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Cannot open the storage gopher://place"):
        resolve_writable("gopher://place")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/runs cannot be written.*--storage"):
        resolve_writable(str(tmp_path / "file" / "runs"))
    assert resolve_writable(str(tmp_path / "a" / ".." / "b")) == str(tmp_path / "b")
    assert (tmp_path / "b").is_dir() and not list((tmp_path / "b").iterdir())
