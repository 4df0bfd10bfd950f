"""How files are fetched from the web, and the error of a url that gives none."""

from dataclasses import dataclass

from drone.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """How files are fetched, and what is refused."""

    per_host_per_s: float = 1.0
    """Requests a second to one host, from all workers together; redirects and retries count."""

    parallel_hosts: int = 8
    """Hosts that are asked at the same time; one host is asked for one file at a time."""

    contact: str = ""
    """Mail address or page that the User-Agent names. Wikimedia asks for one."""

    num_retries: int = 3
    """Tries after the first, on 429, 5xx, time-outs and lost connections."""

    backoff_s: float = 1.0
    """Seconds before the first retry, doubled for each one more; half of it is drawn by chance."""

    max_wait_s: float = 120.0
    """A host that asks (Retry-After) for a longer pause is given up; its urls fail as `busy`."""

    max_silent: int = 5
    """A host that does not answer for so many urls in a row is given up: `host-down`."""

    max_bytes: int = 32 * 2**20
    """A longer file is refused, at the latest when so much has come, packed or unpacked."""

    connect_timeout_s: float = 10.0
    """Seconds until a connection stands."""

    read_timeout_s: float = 20.0
    """Seconds of silence after which a connection is given up."""

    timeout_s: float = 120.0
    """Seconds for one request as a whole, however steadily it drips."""

    max_redirects: int = 5
    """Redirects that are followed for one url."""

    min_side_px: int = 64
    """A picture with a shorter side is refused."""

    max_pixels: int = 64_000_000
    """A picture that would unpack to more is refused before it is decoded."""

    allow_private: bool = False
    """Fetch from loopback, private and other non-public addresses too, for a mirror of your own."""

    def __post_init__(self) -> None:
        for name in ("parallel_hosts", "max_silent", "max_bytes", "min_side_px", "max_pixels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{_flag(name)} is {getattr(self, name)}; it must be at least 1.")
        for name in ("per_host_per_s", "connect_timeout_s", "read_timeout_s", "timeout_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{_flag(name)} is {getattr(self, name)}; it must be above 0.")
        for name in ("num_retries", "backoff_s", "max_wait_s", "max_redirects"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{_flag(name)} is {getattr(self, name)}; it must be 0 or more.")
        if not (self.contact.isascii() and self.contact.isprintable()):
            raise ConfigError(
                f"--contact is {self.contact!r}; it goes into a header and must be plain ASCII."
            )

    @property
    def user_agent(self) -> str:
        """What servers read about us."""
        about = f"; {self.contact}" if self.contact else ""
        return f"drone-collect/0.1 (pictures for an image classifier{about})"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


class FetchError(DataError):
    """A url that gives no file.

    Attributes:
        reason: one word for the tables ("timeout", "http-404", ...).
        host: that failed; empty if there is none.
        temporary: whether another try may help.
        wait_s: pause that the host asks for, or None.
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
