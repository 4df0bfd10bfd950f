"""Serves MLflow for a cluster, with copies of its store where they outlive this machine.

    python ray_jobs/tracking.py                                  (for this machine, in ./mlflow)
    python ray_jobs/tracking.py --backup s3://bucket/mlflow      (a cluster's head)
    python ray_jobs/tracking.py --host 10.0.0.5                  (for other machines: a password)

The store is a sqlite file on this machine's disk. With --backup it is copied there every minute in
which it has changed, and at the end; a new machine starts from that copy. Artifacts are stored
there directly, through this server, so that clients need no access to the location. Ctrl-C ends it.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
ROOTS = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(root for root in ROOTS if (root / "drone").is_dir())))

from ray_jobs import bug_report

bug_report.install(__name__)

from drone.errors import ConfigError
from ray_jobs import cli, console


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Arguments of the job."""

    host: str = "127.0.0.1"
    """Address to listen on. With another than this machine's own (127.0.0.1), MLflow asks for a
    password, which is generated: user admin, --folder/password."""

    port: int = 5000
    """Port to listen on."""

    folder: Path = Path("mlflow")
    """Folder of this machine for the store."""

    backup: str | None = None
    """Folder or URI that outlives this machine, for artifacts and copies of the store."""

    copy_interval_s: float = 60.0
    """Seconds between two copies of the store."""

    until_closed: str | None = None
    """HOST:PORT of another service, such as Ray's; the server ends a minute after it."""

    json: bool = False
    """Print the result as one JSON object, last."""

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise ConfigError(f"--port is {self.port}; it must be 1 to 65535.")
        if not 0 < self.copy_interval_s < math.inf:
            raise ConfigError(f"--copy-interval-s is {self.copy_interval_s}; it must be above 0.")
        port = (self.until_closed or ":1").rpartition(":")[2]
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(f"--until-closed is {self.until_closed!r}; it must be HOST:PORT.")


def main(job: Tracking) -> cli.Result:
    """Runs the job."""
    # Imported late: it takes seconds, for which --help and wrong usage should not wait.
    from drone.storage.filesystem import absolute
    from drone.tracking import server

    settings = server.ServerSettings(
        host=job.host,
        port=job.port,
        folder=Path(absolute(str(job.folder))),
        backup=job.backup,
        copy_interval_s=job.copy_interval_s,
        until_closed=job.until_closed,
    )
    server.serve(settings, console.show)
    return {"store": str(settings.store)}


if __name__ == "__main__":
    cli.start(Tracking, main, __doc__)
