"""The store of served images in a folder, in object storage, and where nothing can be written."""

import datetime
import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from drone.errors import ConfigError, DataError
from drone.serving.background_keeper import BackgroundKeeper
from drone.serving.keeping import KeepSettings
from drone.storage.kept_images import KeptImages
from tests.serving.lambda_events import IMAGE
from tests.serving.server import served

MODEL = {"name": "", "version": "3", "fingerprint": "f", "onnx_sha256": "0"}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of an empty folder on a simulated S3."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="kept")
    yield f"s3://kept/served?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    server.stop()


@pytest.fixture(params=["folder", "bucket"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "bucket":
        return str(request.getfixturevalue("bucket"))
    return str(tmp_path / "deep" / "store")


def keep(store: KeptImages, day: int, *images: bytes) -> None:
    when = datetime.datetime(2026, 11, day, 12, tzinfo=datetime.UTC)
    keeper = BackgroundKeeper(KeepSettings(keep_days=3), store, lambda: when)
    for image in images:
        keeper.offer(image, {"label": "bird", "unsure": True}, MODEL)
    keeper.close(30)
    assert keeper.num_dropped == 0


def test_images_are_listed_once_oldest_first_and_deleted_by_day(location: str) -> None:
    store = KeptImages(location)
    store.check_writable()
    with pytest.raises(DataError, match="holds no served images"):
        store.images()
    keep(store, 20, b"GIF8 one", b"GIF8 two")
    keep(store, 22, b"GIF8 two", b"GIF8 three")  # The second is there already.
    assert sorted(image.day for image in store.images()) == [f"2026-11-{n}" for n in (20, 20, 22)]
    # What has no record, or a damaged one, was not written to its end.
    half, *damaged = (f"{number:064x}" for number in range(4))
    store.write(f"2026-11-22/{half}.png", b"\x89PNG")
    wrong = [b'{"sha', b"[" * 100_000, b'{"time": "yesterday", "model": {}}']
    for name, content in zip(damaged, wrong, strict=True):
        store.write(f"2026-11-22/{name}.png", b"\x89PNG")
        store.write(f"2026-11-22/{name}.json", content)
    # Another server has stored the same image on another day.
    record = next(file.path for file in store.files() if file.path.endswith(".json"))
    name = record.partition("/")[2]
    content = json.loads(store.read(record)) | {"time": "2026-11-23T00:00:00+00:00"}
    store.write(f"2026-11-23/{name}", json.dumps(content).encode())
    store.write(f"2026-11-23/{name.replace('.json', '.gif')}", b"GIF8")
    images = store.images()
    assert [image.day for image in images] == sorted(image.day for image in images)
    assert len(images) == 3 and {image.model for image in images} == {"3"}
    assert {store.read(image.path) for image in images} == {b"GIF8 one", b"GIF8 two", b"GIF8 three"}
    keep(store, 24)
    assert {file.path.partition("/")[0] for file in store.files()} == {"2026-11-22", "2026-11-23"}


def test_a_location_without_a_file_system() -> None:
    with pytest.raises(
        ConfigError, match="Cannot open the storage nosuch://x: nothing reads nosuch://"
    ):
        KeptImages("nosuch://x")


@pytest.mark.slow
def test_a_server_whose_store_cannot_be_written_says_so_and_answers(
    tmp_path: Path, small_export: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    keeping = ["--keep", "file/store", "--keep-share", "1"]
    with served(tmp_path, "--onnx", small_export, *keeping) as server:
        assert [server.request("POST", "/predict", IMAGE)[0] for _ in range(3)] == [200] * 3
        log = server.log.read_text()
    assert "Served images cannot be kept: NotADirectoryError" in log and "Traceback" not in log
    assert log.count("This is logged once an hour") == 1
