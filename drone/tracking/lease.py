"""A lease on a run: one process at a time writes to it, on whichever machine that runs.

On one machine a file lock decides, which ends with its process. Between machines a tag of the run
does: its holder renews it, and another process takes it over only after it has watched the tag
for a while and seen no renewal, which needs no clocks that agree.
"""

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from drone.errors import LockedError
from drone.files import locked, this_process
from drone.project import user_cache
from drone.tracking.failures import FAILURES

_TAG = "lease"
_RENEWAL_S = 10.0
_STALE_S = 35.0
"""Without a renewal for so long the holder is gone: three renewals may be lost on the way."""

_SETTLE_S = 1.0
"""Of two processes that take a lease at once, the one that writes last has it after this time."""


@dataclass
class Lease:
    """A lease that this process holds until it is lost."""

    run_id: str
    _token: str = field(default_factory=lambda: uuid.uuid4().hex)
    _renewals: int = 0
    _taken_by: str = ""

    def check(self) -> None:
        """Fails if another process has taken the run over, as after a suspended laptop.

        Raises:
            LockedError: It has; names it. This process must not write to the run any more.
        """
        if self._taken_by:
            raise LockedError(
                f"Run {self.run_id} has been taken over by {self._taken_by}, because this process "
                f"did not answer for {_STALE_S:.0f} s. Nothing is lost; this process ends."
            )

    @property
    def is_lost(self) -> bool:
        """Whether another process has taken the run over."""
        return bool(self._taken_by)

    def write(self) -> None:
        """Writes or renews the lease's tag."""
        self._renewals += 1
        content = {
            "token": self._token,
            "holder": str(this_process()),
            "machine": _machine(),
            "renewals": self._renewals,
        }
        try:
            MlflowClient().set_tag(self.run_id, _TAG, json.dumps(content))
        except MlflowException:
            # Where two processes set a new tag at once, the database refuses the second insert.
            if _read(self.run_id) is None:
                raise
            MlflowClient().set_tag(self.run_id, _TAG, json.dumps(content))

    def renew(self) -> None:
        """Renews the lease, unless another process has taken it over."""
        current = _read(self.run_id)
        if current is not None and current["token"] != self._token:
            self._taken_by = str(current["holder"])
        else:
            self.write()

    def release(self) -> None:
        """Ends the lease, so that another process need not wait."""
        current = _read(self.run_id)
        if current is not None and current["token"] == self._token:
            MlflowClient().delete_tag(self.run_id, _TAG)


@contextlib.contextmanager
def hold(run_id: str, *, is_new: bool, notify: Callable[[str], None]) -> Iterator[Lease]:
    """Holds the lease of a run while the block runs.

    Args:
        run_id: The run.
        is_new: Whether no other process can know the run yet.
        notify: Called with a message before waiting for a holder on another machine.

    Raises:
        LockedError: Another process holds the run; names it.
    """
    lease, ended = Lease(run_id), threading.Event()
    with locked(_lock_file(run_id), f"Run {run_id}"):
        if not is_new:
            _wait_until_free(run_id, notify)
        lease.write()
        if not is_new:
            _confirm(lease)
        # A daemon: it must not keep a process alive that ends in another way.
        renewing = threading.Thread(target=_keep_renewed, args=(lease, ended), daemon=True)
        renewing.start()
        try:
            yield lease
        finally:
            ended.set()
            # A store that is away must not replace the error that ended the run.
            with contextlib.suppress(*FAILURES):
                lease.release()


def _lock_file(run_id: str) -> Path:
    folder = user_cache() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / run_id


def _machine() -> str:
    """Names the processes that the file lock keeps apart: those that see the same lock file."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    name = boot.read_text("utf-8").strip() if boot.exists() else this_process().host
    status = (user_cache() / "locks").stat()
    return f"{name} {status.st_dev} {status.st_ino}"


def _read(run_id: str) -> dict[str, Any] | None:
    text = MlflowClient().get_run(run_id).data.tags.get(_TAG)
    return json.loads(text) if text else None


def _wait_until_free(run_id: str, notify: Callable[[str], None]) -> None:
    """Returns when nobody holds the lease, or its holder has stopped renewing it."""
    seen = _read(run_id)
    # On this machine the file lock tells: we have it, so the holder before is gone.
    if seen is None or seen["machine"] == _machine():
        return
    notify(
        f"Run {run_id} was last written by {seen['holder']}. Waiting {_STALE_S:.0f} s to see "
        f"whether it still runs."
    )
    give_up_at = time.monotonic() + _STALE_S
    while time.monotonic() < give_up_at:
        time.sleep(_SETTLE_S)
        current = _read(run_id)
        if current is None:
            return
        if current != seen:
            raise LockedError(
                f"Run {run_id} is being written by {current['holder']}. Wait until it has "
                f"finished, or stop it."
            )


def _confirm(lease: Lease) -> None:
    time.sleep(_SETTLE_S)
    lease.renew()
    lease.check()


def _keep_renewed(lease: Lease, ended: threading.Event) -> None:
    while not ended.wait(_RENEWAL_S) and not lease.is_lost:
        # While the store is away nobody else can take the lease over either.
        with contextlib.suppress(*FAILURES):
            lease.renew()
