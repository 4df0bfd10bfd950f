"""Mixed good and hostile load against a real server, for as long as you like.

    python bench/soak.py                                   (5 minutes, random weights)
    python bench/soak.py --seconds 3600 --onnx export/model.onnx

Good clients send one image after another, and ask again when they are told that the server is busy.
Beside them, all the time: damaged and slow images, headers that never end, idle connections, bodies
that are too long, uploads that are broken off, and bursts of requests. The table shows whether
every good request was answered and whether memory stayed flat; the exit code is 1 if not.
"""

import contextlib
import http.client
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import psutil
import tyro

from bench.serving import drawn, first_answer, random_model
from tests.faults import slow_images
from tests.jobs.processes import free_port
from tests.serving import hostile

_KEPT_MB = 100.0
"""Memory that a server may hold more at the end than after its first requests."""


@dataclass(frozen=True, kw_only=True)
class Soak:
    """Arguments."""

    onnx: Path | None = None
    """Exported model; by default one of random weights."""

    seconds: float = 300.0
    """How long the load lasts."""

    good_clients: int = 4
    """Good clients at the same time."""


@dataclass
class Seen:
    """What the clients saw, and the server's memory."""

    sent: int = 0
    answered: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    times_ms: list[float] = field(default_factory=list)
    refused: Counter[int] = field(default_factory=Counter)
    resident_mb: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Load:
    """One run of the load."""

    port: int
    seen: Seen
    stop: threading.Event

    def post(self, body: bytes, connection: http.client.HTTPConnection | None = None) -> int:
        own = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            own.request("POST", "/predict", body)
            response = own.getresponse()
            response.read()
            return response.status
        finally:
            if connection is None:
                own.close()

    def count(self, status: int) -> None:
        if status != 200:
            with self.seen.lock:
                self.seen.refused[status] += 1

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def good(self) -> None:
        """Sends an image and asks again while the server is busy, until there is a prediction."""
        image = drawn()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not self.stop.is_set():
            with self.seen.lock:
                self.seen.sent += 1
            start = time.monotonic()
            try:
                while (status := self.post(image, connection)) == 503:
                    self.count(503)
                    time.sleep(random.uniform(0.05, 0.2))
            except (OSError, http.client.HTTPException) as error:
                self.seen.lost[type(error).__name__] += 1
                connection.close()
                continue
            with self.seen.lock:
                self.seen.answered += status == 200
                self.seen.times_ms.append(1000 * (time.monotonic() - start))
            time.sleep(0.02)

    def hostile(self, act: Callable[[], int | None], pause_s: float) -> None:
        """Repeats something that no good client does; the server may end it as it likes."""
        while not self.stop.wait(pause_s):
            with contextlib.suppress(OSError, http.client.HTTPException):
                if status := act():
                    self.count(status)

    def bad_image(self) -> int:
        return self.post(random.choice(BAD))

    def slow_headers(self) -> None:
        with self.connect() as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            while not self.stop.wait(0.5):
                connection.sendall(b"a")

    def idle(self) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(50):
                stack.enter_context(self.connect())
            self.stop.wait(5)

    def too_long(self) -> int:
        return self.post(bytes(11 * 2**20))

    def aborted(self) -> None:
        with self.connect() as connection:
            head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n"
            connection.sendall(head + bytes(random.randrange(4_000_000)))

    def burst(self) -> None:
        image = slow_images.flat("JPEG", 2000)
        with ThreadPoolExecutor(80) as pool:
            for status in pool.map(lambda _: self.post(image), range(80)):
                self.count(status)


BAD = [
    *(data for data, reason in hostile.cases().values() if reason),
    slow_images.repeated_scans(3000, 300),
    slow_images.png_chunks(b"abCd", b"", 25_000),
    slow_images.plain_comments(300_000),
    slow_images.huge_tile(6000),
    slow_images.run_lengths(5000),
]


def run(load: Load, seconds: float, good_clients: int, server: psutil.Process) -> None:
    """Runs all clients for a time, and watches the server's memory."""
    roles: list[Callable[[], None]] = [load.good] * good_clients
    for act, pause_s in (
        (load.bad_image, 0.05),
        (load.bad_image, 0.05),
        (load.slow_headers, 0.1),
        (load.slow_headers, 0.1),
        (load.idle, 1.0),
        (load.too_long, 1.0),
        (load.aborted, 0.5),
        (load.burst, 10.0),
    ):
        roles.append(lambda act=act, pause_s=pause_s: load.hostile(act, pause_s))
    threads = [threading.Thread(target=role) for role in roles]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        load.seen.resident_mb.append(server.memory_info().rss / 1e6)
        time.sleep(0.1)
    load.stop.set()
    for thread in threads:
        thread.join()
    # The server returns memory when it has been idle for ten seconds.
    time.sleep(15)
    load.seen.resident_mb.append(server.memory_info().rss / 1e6)


def report(seen: Seen) -> bool:
    """Prints the table; returns whether all is well."""
    p50, p99 = np.percentile(seen.times_ms, [50, 99])
    start, peak, end = seen.resident_mb[0], max(seen.resident_mb), seen.resident_mb[-1]
    refused = ", ".join(f"{status}: {count}" for status, count in sorted(seen.refused.items()))
    lost = ", ".join(f"{name}: {count}" for name, count in seen.lost.items())
    print("good requests sent  answered  p50 ms  p99 ms  resident MB at start  peak   end")
    print(
        f"{seen.sent:18}  {seen.answered:8}  {p50:6.0f}  {p99:6.0f}  {start:20.0f}  {peak:4.0f}"
        f"  {end:4.0f}"
    )
    print(f"refused by status: {refused}" + (f"; good requests lost: {lost}" if lost else ""))
    return seen.sent == seen.answered and end - start < _KEPT_MB


def main(job: Soak) -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as temporary:
        onnx = job.onnx or random_model(Path(temporary) / "model.onnx")
        port = free_port()
        serve = [sys.executable, str(ROOT / "ray_jobs" / "serve.py"), "--onnx", str(onnx)]
        with subprocess.Popen(
            [*serve, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as server:
            try:
                first_answer(port, drawn())
                load = Load(port, Seen(), threading.Event())
                run(load, job.seconds, job.good_clients, psutil.Process(server.pid))
            finally:
                server.kill()
    if not report(load.seen):
        sys.exit("Not every good request was answered, or memory grew.")


if __name__ == "__main__":
    main(tyro.cli(Soak, description=__doc__))
