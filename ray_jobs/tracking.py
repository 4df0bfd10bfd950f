"""Serves MLflow for a cluster, its store kept where it outlives this machine.

    python ray_jobs/tracking.py                                  (for this machine, in ./mlflow)
    python ray_jobs/tracking.py --host 10.0.0.5 --keep s3://bucket/mlflow  (the head of a cluster)

The store is a sqlite file on this machine's disk. With --keep it is copied there every minute in
which it changed, and at the end; a new machine begins with that copy. Artifacts go there at once,
through this server, so that clients need no access to the place. Ctrl-C ends it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
PLACES = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(place for place in PLACES if (place / "drone").is_dir())))

from drone.errors import ConfigError
from ray_jobs import cli


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Arguments of the job."""

    host: str = "127.0.0.1"
    """Address to listen on; there is no password, so never a public one."""

    port: int = 5000
    """Port to listen on."""

    folder: Path = Path("mlflow")
    """Folder of this machine for the store."""

    keep: str | None = None
    """Folder or URI that outlives this machine: for artifacts and copies of the store."""

    every_s: float = 60.0
    """Seconds between two copies of the store."""

    until_closed: str | None = None
    """HOST:PORT of another service, such as Ray's; the server ends a minute after it."""

    json: bool = False
    """Print the result as one JSON object, last."""

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise ConfigError(f"--port is {self.port}; it must be 1 to 65535.")
        if self.every_s <= 0:
            raise ConfigError(f"--every-s is {self.every_s}; it must be above 0.")
        if self.until_closed and not self.until_closed.rpartition(":")[2].isdecimal():
            raise ConfigError(f"--until-closed is {self.until_closed!r}; wanted is HOST:PORT.")


def main(job: Tracking) -> cli.Result:
    """Runs the job."""
    from drone.adapters import tracking_server

    server = tracking_server.Server(
        host=job.host,
        port=job.port,
        folder=job.folder.expanduser().resolve(),
        keep=job.keep,
        every_s=job.every_s,
        until_closed=job.until_closed,
    )
    tracking_server.serve(server, lambda text: cli.console.print(text, soft_wrap=True))
    return {"store": str(server.store)}


if __name__ == "__main__":
    cli.start(Tracking, main, __doc__)
