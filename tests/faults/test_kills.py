"""Files that are written one at a time are there in whole, whatever is killed when."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from drone.collect import provenance
from drone.collect.download import Outcome
from drone.collect.raw_folder import collect
from drone.data.prepare import ledger
from drone.errors import DataError
from drone.search.space import DEFAULT
from drone.search.study import Study
from drone.training import checkpoint
from drone.training.checkpoint import Identity, Position, Tensors
from tests.collect.website import QUICK, image_bytes, image_url
from tests.faults.crash import killed_at_every_step
from tests.faults.updated import drop
from tests.search.studies import study_spec, trial_record


def steps_of(folder: Path, action: Callable[[], object], check: Callable[[], object]) -> int:
    """Kills an action in every step and checks what is left; returns the number of steps."""
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)

    def restore() -> None:
        shutil.rmtree(folder)
        shutil.copytree(copy, folder)

    steps = 0
    for _ in killed_at_every_step(restore, action):
        check()
        steps += 1
    return steps


def test_the_ledger(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    file, decisions = folder / ledger.LEDGER_FILE, [drop(f"{n:032x}", "someone") for n in range(3)]
    ledger.append(file, decisions[:1])

    def check() -> None:
        assert ledger.repair(file) == [] and ledger.read(file) in (decisions[:1], decisions)

    assert steps_of(folder, lambda: ledger.append(file, decisions[1:]), check) >= 2


def test_a_study(tmp_path: Path) -> None:
    study = Study(tmp_path / "study")
    study.write_spec(study_spec(DEFAULT, 4))
    before, after = trial_record(3, [0.5]), trial_record(3, [0.5, 0.6], "finished")
    study.save("trials", before)

    def check() -> None:
        assert study.read_spec().num_trials == 4
        assert study.records("trials") in ([before], [after])

    assert steps_of(study.folder, lambda: study.save("trials", after), check) >= 2


def test_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    weights = {"w": torch.ones(20, 20)}
    tensors = Tensors({"model": weights}, {"lr": torch.tensor(0.1)}, weights)
    identity = Identity(config={}, classes=("a",), fingerprint="f", commit="c")

    def save(epoch: int) -> None:
        checkpoint.save(folder / f"checkpoint_{epoch}", Position(epoch=epoch), identity, tensors)

    def check() -> None:
        latest = checkpoint.latest(folder)
        assert latest is not None and checkpoint.load(latest)[0].epoch in (1, 2)

    save(1)
    assert steps_of(folder, lambda: save(2), check) >= 3
    save(3)  # What a kill has left is no obstacle.
    assert checkpoint.latest(folder) == folder / "checkpoint_3"


def outcome(number: int) -> Outcome:
    """An image that was downloaded."""
    data = image_bytes(number)
    return Outcome(final_url="http://example.org", data=data, md5=str(number) * 32, format="JPEG")


def download(urls, settings):  # type: ignore[no-untyped-def]
    """A downloader without a network."""
    for url in urls:
        yield url, outcome(int(url.url[-1]))


def collected(folder: Path) -> list[provenance.Record]:
    """Collects two images."""
    urls = [image_url(f"http://example.org/{number}") for number in range(2)]
    done = provenance.latest_records(folder)
    return list(collect([url for url in urls if url.key not in done], folder, QUICK, download))


def test_a_collection(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()

    def check() -> None:
        # Every image that is there is whole, and what is missing comes with the next run.
        assert all(file.read_bytes()[-2:] == b"\xff\xd9" for file in folder.glob("*/*"))
        collected(folder)
        assert len(provenance.latest_records(folder)) == len(list(folder.glob("*/*"))) == 2

    assert steps_of(folder, lambda: collected(folder), check) >= 6


@pytest.mark.parametrize("link", ["Flying Birds", provenance.FILE_NAME, ".part"])
def test_a_collection_writes_through_no_link(tmp_path: Path, link: str) -> None:
    folder, elsewhere = tmp_path / "raw", tmp_path / "elsewhere"
    folder.mkdir()
    if link == "Flying Birds":
        elsewhere.mkdir()
    else:
        elsewhere.write_text("precious")
    (folder / link).symlink_to(elsewhere)
    if link == ".part":  # Of the job's own: replaced.
        collected(folder)
    else:
        with pytest.raises(DataError, match="is a link"):
            collected(folder)
    assert elsewhere.is_dir() or elsewhere.read_text() == "precious"
    assert not elsewhere.is_dir() or list(elsewhere.iterdir()) == []
