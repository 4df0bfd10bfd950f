"""A small data set that is updated, killed, damaged and put back."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from drone.data.dataset import open_dataset
from drone.data.prepare import history, ledger
from drone.data.prepare.plan import PrepareSettings, map_sequentially, plan_dataset
from drone.data.prepare.write import undo_last, write_dataset, writing
from drone.serving.preprocess import Preprocessing

SETTINGS = PrepareSettings(preprocessing=Preprocessing(side_px=32))


def drop(md5: str, by: str) -> ledger.Decision:
    """A decision by hand."""
    return ledger.Decision(
        md5=md5, path="", action="drop", reason="by-hand", evidence="", by=by, when=""
    )


class Updated:
    """A small data set with a decision in its ledger, about to get another one."""

    def __init__(self, raw: Path, folder: Path) -> None:
        self.raw, self._cache = raw, folder / "cache"
        self.place = folder / "place"
        self.place.mkdir()
        self.out = self.place / "set"
        self.update([])
        manifest = open_dataset(self.out).manifest
        self.md5 = list(manifest.loc[manifest["kept"], "md5"])
        self.update([drop(self.md5[0], "first")])
        self._copy = folder / "copy"
        shutil.copytree(self.place, self._copy)

    def restore(self) -> None:
        """Puts the data set back as it was after the first decision."""
        shutil.rmtree(self.place)
        shutil.copytree(self._copy, self.place)

    def update(self, decisions: Sequence[ledger.Decision]) -> list[str]:
        """Takes decisions in; returns what had to be put in order."""
        said: list[str] = []
        with writing(self.out, said.append) as out:
            plan = plan_dataset(
                [self.raw],
                SETTINGS,
                map_sequentially,
                out,
                decisions=decisions,
                cache_folder=self._cache,
            )
            write_dataset(plan, out, map_sequentially, notify=said.append)
        return said

    def recover(self) -> list[str]:
        """Puts in order what a kill has left; returns what was done."""
        said: list[str] = []
        with writing(self.out, said.append):
            return said

    def undo(self) -> list[str]:
        """Restores the version before the present one."""
        said: list[str] = []
        with writing(self.out, said.append) as out:
            undo_last(out, map_sequentially)
        return said

    def state(self) -> tuple[str, set[str], int]:
        """Fingerprint, who decided, and the number of earlier versions; everything is checked."""
        dataset = open_dataset(self.out)
        assert not list(dataset.damaged_files())
        by = {one.by for one in ledger.by_hand(ledger.read(self.out / "ledger.jsonl")).values()}
        return dataset.fingerprint, by, len(history.versions(self.out))
