"""Rows over Ray: in their order, and with errors that a person can mend as they were raised."""

import pytest

from drone.adapters import ray_cluster
from drone.errors import DataError


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_rows_come_in_order_and_errors_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    with ray_cluster.connected(num_cpus=2):
        from drone.adapters.ray_data import map_rows

        rows = [{"number": number} for number in range(1000)]
        squares = map_rows(lambda row: {"square": row["number"] ** 2}, rows, "squaring")
        assert [row["square"] for row in squares] == [number**2 for number in range(1000)]
        assert map_rows(lambda row: row, [], "nothing") == []

        def fail(row: dict) -> dict:
            if row["number"] == 700:
                raise DataError("picture 700 has changed")
            return row

        with pytest.raises(DataError, match="picture 700 has changed"):
            map_rows(fail, rows, "failing")

        def full(row: dict) -> dict:
            raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space left"):
            map_rows(full, rows[:1], "writing")
    assert "Traceback" not in capfd.readouterr().err
