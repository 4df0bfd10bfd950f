"""The error of a URL that cannot be fetched."""

from drone.errors import DataError


class FetchError(DataError):
    """A URL gave no file.

    Attributes:
        reason: Short name of the reason for the provenance file, such as "timeout" or "http-404".
        host: Host that failed; empty if no host was involved.
        temporary: Whether a retry may succeed.
        wait_s: Seconds that the host wants clients to wait (Retry-After), or None.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        host: str = "",
        temporary: bool = False,
        wait_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.host = host
        self.temporary = temporary
        self.wait_s = wait_s
