"""Large images and bodies: the memory of a server is bounded, and returned."""

import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from drone.serving.api import Api, ApiSettings, Request, extract_image
from drone.serving.predictor import Predictor
from tests.faults import slow_images
from tests.jobs.processes import wait_for
from tests.serving.server import Server, served

MB = 10**6


def resident_mb(server: Server) -> float:
    return psutil.Process(server.process.pid).memory_info().rss / MB


@pytest.mark.slow
def test_a_burst_of_large_images_takes_bounded_memory_and_returns_it(
    linear: Path, tmp_path: Path
) -> None:
    """60 images of 25 million pixels in bodies of 6 MB, all at once."""
    body = slow_images.flat("JPEG", 5000) + bytes(6 * MB)
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], resident_mb(server))

    def post(_: int) -> int:
        while (status := server.request("POST", "/predict", body)[0]) == 503:
            time.sleep(0.3)
        return status

    with served(tmp_path, "--onnx", linear) as server:
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            with ThreadPoolExecutor(60) as pool:
                assert set(pool.map(post, range(60))) == {200}
        finally:
            done.set()
            watcher.join()
        assert 200 < peak[0] < 1000
        wait_for(lambda: resident_mb(server) < 250, timeout_s=60)


def test_spaces_in_base64_take_little_memory() -> None:
    body = b'{"image": "' + b"QU " * 10**6 + b'"}'
    request = Request("POST", "/predict", {"content-type": "application/json"}, body)
    tracemalloc.start()
    try:
        assert len(extract_image(request)) == 1_500_000
        assert tracemalloc.get_traced_memory()[1] < 5 * len(body)
    finally:
        tracemalloc.stop()


def test_a_form_of_many_parts_is_rejected_at_once(linear: Path) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    start = time.process_time()
    response = Api(Predictor(linear), ApiSettings()).handle(
        Request("POST", "/predict", headers, part * 100_000 + b"--x--\r\n")
    )
    assert response.status == 400 and b"more than 100 parts" in response.body
    assert time.process_time() - start < 0.5
