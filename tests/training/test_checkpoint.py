from pathlib import Path

import pytest
import torch

from drone.adapters import storage
from drone.errors import ConfigError, RunError
from drone.training import checkpoint
from drone.training.checkpoint import Identity, Position

IDENTITY = Identity(config={"epochs": 3}, classes=("a", "b"), fingerprint="f", commit="c")


def write(folder: Path, epoch: int, batch: int) -> Path:
    position = Position(epoch=epoch, batch=batch, tally=[1.0], history=[{"epoch": 1}])
    weights = {"model": {"w": torch.ones(2)}}
    checkpoint.save(folder, position, IDENTITY, weights, {"state": {}}, {"w": torch.zeros(2)})
    return folder


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    loaded = checkpoint.load(write(tmp_path / "checkpoint_1", epoch=2, batch=5))
    assert (loaded.position.epoch, loaded.position.batch) == (2, 5)
    assert loaded.identity == IDENTITY
    assert torch.equal(loaded.weights["model"]["w"], torch.ones(2))
    assert not list(tmp_path.glob(".*"))  # Nothing half-written is left.


@pytest.mark.parametrize("damage", ["cut", "missing", "schema"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    good = write(tmp_path / "checkpoint_1", epoch=1, batch=0)
    bad = write(tmp_path / "checkpoint_2", epoch=2, batch=0)
    if damage == "cut":
        data = (bad / "weights.pt").read_bytes()
        (bad / "weights.pt").write_bytes(data[: len(data) // 2])
    elif damage == "missing":
        (bad / "optimizer.pt").unlink()
    else:
        state = (bad / "state.json").read_text()
        (bad / "state.json").write_text(state.replace('"schema": 1', '"schema": 9'))
    with pytest.raises(RunError, match=r"checkpoint_2.*(damaged|schema 9)"):
        checkpoint.load(bad)
    if damage != "schema":
        assert checkpoint.latest(tmp_path) == good
        assert storage.newest(str(tmp_path)).place == str(good)


def test_the_newest_of_all_attempts(tmp_path: Path) -> None:
    assert storage.newest(str(tmp_path / "nothing")) is None
    write(tmp_path / "attempt_1" / "checkpoint_9", epoch=1, batch=9)
    furthest = write(tmp_path / "attempt_1" / "checkpoint_8", epoch=2, batch=1)
    write(tmp_path / "attempt_2" / "checkpoint_1", epoch=2, batch=0)
    found = storage.newest(str(tmp_path))
    assert (found.place, found.epoch, found.batch) == (str(furthest), 2, 1)
    assert storage.newest(f"file://{tmp_path}").place == f"file://{furthest}"
    copy = storage.fetch(found.place, tmp_path / "copy")
    assert checkpoint.load(copy).position.batch == 1


def test_storage_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gopher://place cannot be opened"):
        storage.resolve("gopher://place")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/runs cannot be written.*--storage"):
        storage.resolve(str(tmp_path / "file" / "runs"))
    assert storage.resolve(str(tmp_path / "a" / ".." / "b")) == str(tmp_path / "b")
    assert (tmp_path / "b").is_dir() and not list((tmp_path / "b").iterdir())
