"""Rows mapped by Ray Data: in their order, with errors as they were raised."""

import pytest

from drone.cluster import connection
from drone.errors import DataError


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_rows_keep_their_order_and_errors_their_type(capfd: pytest.CaptureFixture[str]) -> None:
    with connection.connected(num_cpus=2):
        from drone.cluster.data import map_rows

        rows = [{"number": number} for number in range(1000)]
        counts: list[int] = []
        squares = map_rows(lambda row: {"square": row["number"] ** 2}, rows, counts.append)
        assert [row["square"] for row in squares] == [number**2 for number in range(1000)]
        assert sum(counts) == 1000
        assert map_rows(lambda row: row, [], counts.append) == []

        def fail(row: dict) -> dict:
            if row["number"] == 700:
                raise DataError("image 700 has changed")
            return row

        with pytest.raises(DataError, match="image 700 has changed"):
            map_rows(fail, rows, counts.append)

        def full(row: dict) -> dict:
            raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space left"):
            map_rows(full, rows[:1], counts.append)
    assert "Traceback" not in capfd.readouterr().err
