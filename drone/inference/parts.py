"""Finished rows in files: what a run that was killed has done, and the next one need not do.

A part is a table of some rows (`00012.parquet`), and beside it their cards for the contact sheet
(`00012.cards`), one JSON object after the other. A part exists once its table does.
"""

import io
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from drone.commands import quoted
from drone.errors import ConfigError
from drone.files import SchemaError, seal, unseal, write_whole
from drone.inference.cards import card
from drone.inference.rows import Row, record_of, schema, table_of

_SCHEMA = 2

_RUN_FILE = "run.json"

_MAX_ROWS, _MAX_SECONDS = 512, 5.0
"""Rows, and seconds of work, that a kill may lose."""

_BOOKKEEPING = [("key", pa.string()), ("card_start", pa.int64()), ("card_bytes", pa.int32())]


@dataclass(frozen=True)
class Part:
    """A part that was read."""

    table: pa.Table
    """Rows with the columns of `rows.schema`, and key, card_start and card_bytes."""

    cards: Path
    """File of their cards."""


class Parts:
    """The finished rows of one run, in a folder."""

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self.folder = folder
        self._columns = pa.schema([*schema(classes), *_BOOKKEEPING])

    def open(self, settings: Mapping[str, Any]) -> None:
        """Creates the folder, or checks that what it holds was made with the same settings.

        Args:
            settings: What decides the rows, as JSON values by the name that a user knows.

        Raises:
            ConfigError: It holds rows that were made with other settings.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / _RUN_FILE
        if not file.exists():
            if self._files():
                raise self._other("files of unknown origin")
            write_whole(file, seal({"settings": dict(settings)}, _SCHEMA))
            return
        try:
            found = unseal(file.read_bytes(), _SCHEMA)["settings"]
        except SchemaError as error:
            raise self._other("the predictions of another version of this program") from error
        except ValueError as error:
            raise self._other(f"predictions, but {file.name} is damaged") from error
        differing = [name for name in settings if found.get(name) != settings[name]]
        if differing:
            raise self._other(f"predictions with another {' and '.join(differing)}")

    def _other(self, what: str) -> ConfigError:
        return ConfigError(
            f"{self.folder} holds {what}. Choose another --out, or start anew: "
            f"rm -r {quoted(self.folder)}"
        )

    def keys(self) -> set[str]:
        """Returns the keys of the items that have a row."""
        tables = (self._read(file, ["key"]) for file in self._files())
        return {key for table in tables for key in table["key"].to_pylist()}

    def read(self, keys: Collection[str]) -> Iterator[Part]:
        """Yields the parts one at a time, with the rows of these items alone, each once."""
        missing = set(keys)
        for file in self._files():
            table = self._read(file)
            found = table["key"].to_pylist()
            wanted = [key in missing for key in found]
            missing.difference_update(found)
            if not all(wanted):
                table = table.filter(pa.array(wanted, pa.bool_()))
            yield Part(table, file.with_suffix(".cards"))

    def write(self, rows: Iterable[Row]) -> Iterator[int]:
        """Writes rows as they come; yields the number of each group of rows that is safe.

        All rows of an item are in one part. Whatever ends the iteration, the finished items are
        written.
        """
        number = self._next_number()
        # Rows of finished items, and of the one that is not yet.
        waiting: list[Row] = []
        unfinished: list[Row] = []
        deadline = time.monotonic() + _MAX_SECONDS
        try:
            for row in rows:
                unfinished.append(row)
                if not row.is_last:
                    continue
                waiting += unfinished
                unfinished = []
                if len(waiting) >= _MAX_ROWS or time.monotonic() > deadline:
                    self._write(number, waiting)
                    number, num_written, waiting = number + 1, len(waiting), []
                    yield num_written
                    deadline = time.monotonic() + _MAX_SECONDS
        finally:
            if waiting:
                self._write(number, waiting)
        yield len(waiting)

    def _next_number(self) -> int:
        numbers = [int(file.stem) for file in self._files()]
        return max(numbers, default=-1) + 1

    def _write(self, number: int, rows: Sequence[Row]) -> None:
        cards, start, records = [card(row) for row in rows], 0, []
        for row, text in zip(rows, cards, strict=True):
            place = {"key": row.item.key, "card_start": start, "card_bytes": len(text)}
            records.append({**record_of(row), **place})
            start += len(text)
        table = table_of(records, self._columns)
        content = io.BytesIO()
        parquet.write_table(table, content)
        file = self.folder / f"{number:05}.parquet"
        # The table last: with it the part exists.
        write_whole(file.with_suffix(".cards"), b"".join(cards))
        write_whole(file, content.getvalue())

    def _files(self) -> list[Path]:
        files = (file for file in self.folder.glob("*.parquet") if file.stem.isdigit())
        return sorted(files, key=lambda file: int(file.stem))

    def _read(self, file: Path, columns: list[str] | None = None) -> pa.Table:
        try:
            # Not `read_table`, which imports pandas.
            table = parquet.ParquetFile(file).read(columns)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(file) from error
        if columns is None and table.schema != self._columns:
            raise self._damaged(file)
        return table

    def _damaged(self, file: Path) -> ConfigError:
        return ConfigError(
            f"{file} is damaged. Remove it, and the same command predicts its images again: "
            f"rm {quoted(file)}"
        )
