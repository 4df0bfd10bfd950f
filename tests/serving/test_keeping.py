"""Served images are kept: which ones, where, for how long, and at no cost to answers."""

import datetime
import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from drone.errors import ConfigError
from drone.labels import NONE
from drone.serving import background_keeper
from drone.serving.api import Api, ApiSettings, Request
from drone.serving.background_keeper import BackgroundKeeper
from drone.serving.keeping import KeepSettings, StoredFile
from drone.serving.predictor import Predictor
from drone.storage.kept_images import KeptImages
from tests.jobs.processes import wait_for
from tests.serving.lambda_events import file_of, noise

MODEL = {"name": "m", "version": "3", "fingerprint": "f", "onnx_sha256": "0"}
SURE = {"label": "Flying Birds", "unsure": False}
UNSURE = {"label": "Flying Birds", "unsure": True}
REJECTED = {"label": NONE, "unsure": False}
NOON = datetime.datetime(2026, 11, 28, 12, tzinfo=datetime.UTC)


class Broken:
    """A store that refuses everything."""

    def check_writable(self) -> None:
        raise OSError(28, "No space left on device")

    def files(self) -> Iterable[StoredFile]:
        raise OSError(28, "No space left on device")

    def write(self, path: str, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    def delete(self, paths: Sequence[str]) -> None:
        raise PermissionError(13, "Permission denied")


class Hanging(Broken):
    """A store that takes as long as a test likes."""

    def __init__(self) -> None:
        self.end = threading.Event()

    def check_writable(self) -> None:
        self.end.wait(20)

    def files(self) -> Iterator[StoredFile]:
        self.end.wait(20)
        return iter(())


def kept_by(settings: KeepSettings, folder: Path, *offers: tuple[bytes, dict]) -> KeptImages:
    """The store after these images were offered at noon."""
    store = KeptImages(str(folder))
    keeper = BackgroundKeeper(settings, store, lambda: NOON)
    for image, answer in offers:
        keeper.offer(image, answer, MODEL)
    keeper.close(30)
    return store


def test_unsure_and_rejected_images_are_kept_with_their_bytes_and_answer(tmp_path: Path) -> None:
    offers = [
        (b"\x89PNG sure", SURE),
        (b"\x89PNG unsure", UNSURE),
        (b"\xff\xd8\xff none", REJECTED),
    ]
    store = kept_by(KeepSettings(keep_share=0), tmp_path, *offers, *offers)
    unsure, rejected = sorted(store.images(), key=lambda image: image.label)
    assert (unsure.reasons, rejected.reasons) == (("unsure",), ("rejected",))
    assert unsure.path == f"2026-11-28/{unsure.sha256}.png"
    assert store.read(unsure.path) == b"\x89PNG unsure" and rejected.path.endswith(".jpg")
    assert unsure.sha256 == hashlib.sha256(b"\x89PNG unsure").hexdigest()
    record = json.loads(store.read(unsure.path.replace(".png", ".json")))
    assert record["answer"] == UNSURE and record["model"] == MODEL
    assert record["time"] == "2026-11-28T12:00:00+00:00"
    assert set(record) == {"sha256", "md5", "time", "reasons", "answer", "model"}
    assert len(store.files()) == 4


def test_the_sample_is_a_share_of_all_contents_and_repeats() -> None:
    images = [bytes([number % 256, number // 256]) for number in range(2000)]
    settings = KeepSettings(keep_share=0.1, keep_unsure=False, keep_none=False)
    sampled = [settings.reasons(UNSURE, hashlib.sha256(image).hexdigest()) for image in images]
    assert 150 < sum(map(bool, sampled)) < 250
    assert [bool(settings.reasons(SURE, hashlib.sha256(one).hexdigest())) for one in images] == [
        bool(reasons) for reasons in sampled
    ]
    assert all(
        KeepSettings(keep_share=1).reasons(SURE, f"{number:064x}") for number in (0, 2**256 - 1)
    )


def test_old_days_go_and_then_the_oldest_ones_until_the_size_fits(tmp_path: Path) -> None:
    for number, day in enumerate(("2026-08-01", "2026-11-20", "2026-11-27")):
        (tmp_path / day).mkdir()
        (tmp_path / day / f"{number:064x}.png").write_bytes(bytes(1000))
        (tmp_path / day / f"{number:064x}.json").write_bytes(b"{}")
    (tmp_path / "notes").mkdir()
    settings = KeepSettings(keep_gb=3e-6, keep_days=30)
    kept_by(settings, tmp_path, (b"\x89PNG" + bytes(1000), UNSURE))
    assert {path.name for path in tmp_path.iterdir()} == {"2026-11-27", "2026-11-28", "notes"}
    # Of today nothing is deleted: further images are not kept.
    store = kept_by(settings, tmp_path, *((b"GIF8%d" % n + bytes(900), UNSURE) for n in range(4)))
    assert not (tmp_path / "2026-11-27").exists() and (tmp_path / "notes").exists()
    assert len(store.images()) == 2


def test_only_what_the_store_has_written_is_deleted(tmp_path: Path) -> None:
    for day in ("2019-07-01", "2026-11-20"):
        (tmp_path / day).mkdir()
        (tmp_path / day / "holiday.jpg").write_bytes(bytes(5000))
        (tmp_path / day / f"{1:064x}.jpg").write_bytes(bytes(1000))
        (tmp_path / day / f"{1:064x}.json").write_bytes(b"{}")
    (tmp_path / "lost+found").mkdir(mode=0)
    store = kept_by(
        KeepSettings(keep_gb=1e-6, keep_days=30), tmp_path, (b"GIF8" + bytes(500), UNSURE)
    )
    assert len(store.images()) == 1
    assert sorted(path.name for path in tmp_path.glob("20*/*") if len(path.stem) < 64) == [
        "holiday.jpg",
        "holiday.jpg",
    ]
    assert not list(tmp_path.glob(f"20*/{1:064x}.*"))


def test_halves_of_pairs_go_the_next_day_and_do_not_count_as_stored(tmp_path: Path) -> None:
    image = b"GIF8 an image"
    sha256 = hashlib.sha256(image).hexdigest()
    for day in ("2026-11-27", "2026-11-28"):
        (tmp_path / day).mkdir()
        for name in (f"{sha256}.json", f"{2:064x}.png", f"{3:064x}.png.0a.new"):
            (tmp_path / day / name).write_bytes(b"{}")
    store = kept_by(KeepSettings(), tmp_path, (image, UNSURE))
    assert not (tmp_path / "2026-11-27").exists()
    # Another server may be writing those of today.
    assert len(list((tmp_path / "2026-11-28").iterdir())) == 4
    assert [image.sha256 for image in store.images()] == [sha256]


def test_an_image_that_completes_a_half_counts_once(tmp_path: Path) -> None:
    image = b"GIF8 first" + bytes(1000)
    (tmp_path / "2026-11-28").mkdir()
    half = tmp_path / "2026-11-28" / f"{hashlib.sha256(image).hexdigest()}.gif"
    half.write_bytes(image)
    offers = [(image, UNSURE), (b"GIF8 second" + bytes(900), UNSURE)]
    store = kept_by(KeepSettings(keep_gb=2.6e-6), tmp_path, *offers)
    assert len(store.images()) == 2


def test_days_end_without_images_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_keeper, "_RELIST_S", 0.05)
    days = iter([NOON, *[NOON + datetime.timedelta(days=400)] * 1000])
    store = kept_by(KeepSettings(), tmp_path, (b"GIF8", UNSURE))
    keeper = BackgroundKeeper(KeepSettings(keep_days=1), store, lambda: next(days))
    wait_for(lambda: not store.files())
    keeper.close(30)


def test_what_another_server_has_deleted_is_no_error(tmp_path: Path) -> None:
    settings = KeepSettings(keep_gb=3e-6)
    store = kept_by(settings, tmp_path, (b"GIF8 first" + bytes(1000), UNSURE))
    times = [NOON + datetime.timedelta(days=1, seconds=number) for number in range(9)]
    keeper = BackgroundKeeper(settings, store, iter(times).__next__)
    keeper.offer(b"GIF8 a" + bytes(500), UNSURE, MODEL)
    wait_for(lambda: keeper.num_kept == 1)
    store.delete([file.path for file in store.files() if file.path.startswith("2026-11-28")])
    keeper.offer(b"GIF8 b" + bytes(900), UNSURE, MODEL)
    keeper.close(30)
    assert (keeper.num_kept, keeper.num_dropped) == (2, 0)


def test_a_write_that_fails_leaves_nothing_and_no_half_that_another_server_has_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = KeptImages(str(tmp_path))
    keeper = BackgroundKeeper(KeepSettings(), store, lambda: NOON)
    keeper.offer(b"GIF8 before", UNSURE, MODEL)
    wait_for(lambda: keeper.num_kept == 1)
    kept_by(KeepSettings(), tmp_path, (b"GIF8 of another server", UNSURE))

    def full(stream: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        keeper.offer(b"GIF8 afterwards", UNSURE, MODEL)
        keeper.offer(b"GIF8 of another server", UNSURE, MODEL)
        keeper.close(30)
    assert keeper.num_dropped == 2
    kept = {store.read(image.path) for image in store.images()}
    assert kept == {b"GIF8 before", b"GIF8 of another server"} and len(store.files()) == 4


def test_a_store_that_is_full_or_broken_is_logged_once_and_raises_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    keeper = BackgroundKeeper(KeepSettings(), Broken(), lambda: NOON)
    for number in range(5):
        keeper.offer(b"%d" % number, UNSURE, MODEL)
    keeper.close(30)
    assert keeper.num_dropped == 5 and keeper.num_kept == 0
    assert caplog.text.count("No space left") == 1
    assert "5 served images that were to be kept are not" in caplog.text


def test_a_store_that_hangs_delays_nobody_and_bounds_the_queue(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background_keeper, "_MAX_WAITING_BYTES", 30)
    store = Hanging()
    keeper = BackgroundKeeper(KeepSettings(), store, lambda: NOON)
    for number in range(6):
        keeper.offer(bytes([number]) * 10, UNSURE, MODEL)
    assert keeper.num_dropped == 3
    keeper.close(0.05)
    assert "faster than their store takes them" in caplog.text
    assert "6 served images that were to be kept are not" in caplog.text
    store.end.set()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"keep_share": 1.5}, "--keep-share is 1.5; it must be 0 to 1"),
        ({"keep_gb": 0}, "--keep-gb is 0; it must be above 0"),
        ({"keep_days": 0}, "--keep-days is 0; it must be 1 to 36,500"),
        ({"keep_days": 500_000}, "--keep-days is 500000; it must be 1 to 36,500"),
        ({"keep": " "}, "--keep is empty; name a folder or a URI"),
    ],
)
def test_wrong_settings(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KeepSettings(**wrong)


def test_the_interface_says_what_is_kept_and_a_header_forbids_it(
    linear: Path, tmp_path: Path
) -> None:
    store = KeptImages(str(tmp_path / "store"))
    keeper = BackgroundKeeper(KeepSettings(keep_share=1, keep_days=7), store)
    api = Api(Predictor(linear, threads=1), ApiSettings(), keeper=keeper)

    def post(image: bytes, **headers: str) -> dict:
        path, query = "/predict", "evidence=true"
        return json.loads(api.handle(Request("POST", path, headers, image, query)).body)

    answer = post(file_of(noise(60), "PNG"))
    post(file_of(noise(70), "PNG"), **{"x-do-not-keep": ""})
    keeper.close(30)
    (image,) = store.images()
    assert store.read(image.path) == file_of(noise(60), "PNG") and "sampled" in image.reasons
    record = json.loads(store.read(f"{image.path.rpartition('.')[0]}.json"))
    assert record["answer"]["probabilities"] == answer["probabilities"]
    assert not {"evidence", "request_id"} & set(record["answer"])
    assert record["model"]["onnx_sha256"] == api.predictor.checksum
    get = {name: api.handle(Request("GET", name)) for name in ("/model", "/docs", "/openapi.json")}
    assert json.loads(get["/model"].body)["keeps"]["days"] == 7
    assert b"for at most 7 days" in get["/docs"].body and b"X-Do-Not-Keep" in get["/docs"].body
    assert "X-Do-Not-Keep" in get["/docs"].headers["Access-Control-Allow-Headers"]


def test_without_a_keeper_the_interface_says_so(linear: Path) -> None:
    api = Api(Predictor(linear, threads=1), ApiSettings())
    assert json.loads(api.handle(Request("GET", "/model")).body)["keeps"] is None
    assert b"Images are not kept." in api.handle(Request("GET", "/docs")).body
