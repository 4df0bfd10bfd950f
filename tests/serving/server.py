"""Runs `serve.py` in a process of its own and sends requests to it."""

import contextlib
import http.client
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import job_command, job_environment
from tests.jobs.processes import free_port, wait_for


@dataclass
class Server:
    process: subprocess.Popen
    port: int
    log: Path

    def request(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()


@contextlib.contextmanager
def served(folder: Path, *args: object) -> Iterator[Server]:
    port = free_port()
    log = folder / "server.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            job_command("serve", "--port", port, *args),
            cwd=folder,
            env=job_environment(),
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        try:
            wait_for(lambda: "is served at" in log.read_text() or process.poll() is not None)
            yield Server(process, port, log)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
