"""Settings of searches and downloads."""

from dataclasses import dataclass

from drone.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """How files are fetched, and within which limits."""

    requests_per_s: float = 1.0
    """Maximum requests per second to one host, over all workers; redirects and retries count."""

    max_concurrent_hosts: int = 8
    """Maximum number of hosts to download from at the same time, one file per host at a time."""

    contact: str = ""
    """Mail address or web page to name in the User-Agent header. Wikimedia asks for one."""

    num_retries: int = 3
    """Maximum number of retries per URL, after 429, 5xx, timeouts and lost connections."""

    backoff_s: float = 1.0
    """Seconds before the first retry, doubled for each further one; with jitter of up to half."""

    max_wait_s: float = 120.0
    """Longest wait that a host may ask for with Retry-After; beyond it, its URLs fail as `busy`."""

    max_host_failures: int = 5
    """Consecutive URLs without a response after which a host is skipped, as `host-down`."""

    max_bytes: int = 32 * 2**20
    """Maximum size of a file in bytes, both as transferred and decompressed."""

    connect_timeout_s: float = 10.0
    """Maximum seconds to establish a connection."""

    read_timeout_s: float = 20.0
    """Maximum seconds without any data from the server."""

    timeout_s: float = 120.0
    """Maximum seconds for a whole request, even if data keeps arriving."""

    max_redirects: int = 5
    """Maximum number of redirects per URL."""

    min_side_px: int = 64
    """Minimum length of an image's shorter side, in pixels."""

    max_pixels: int = 64_000_000
    """Maximum number of pixels of an image, checked before it is decoded."""

    allow_private: bool = False
    """Also fetch from private, loopback and other non-public addresses, such as your own mirror."""

    def __post_init__(self) -> None:
        for name in (
            "max_concurrent_hosts",
            "max_host_failures",
            "max_bytes",
            "min_side_px",
            "max_pixels",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{_flag(name)} is {getattr(self, name)}; it must be at least 1.")
        for name in ("requests_per_s", "connect_timeout_s", "read_timeout_s", "timeout_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{_flag(name)} is {getattr(self, name)}; it must be above 0.")
        for name in ("num_retries", "backoff_s", "max_wait_s", "max_redirects"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{_flag(name)} is {getattr(self, name)}; it must be 0 or more.")
        if not (self.contact.isascii() and self.contact.isprintable()):
            raise ConfigError(
                f"--contact is {self.contact!r}; it goes into an HTTP header and must be "
                f"printable ASCII."
            )

    @property
    def user_agent(self) -> str:
        """Value of the User-Agent header."""
        contact = f"; {self.contact}" if self.contact else ""
        return f"drone-collect/0.1 (images for an image classifier{contact})"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Where to search for image URLs, and how many to find."""

    per_class: int = 200
    """Number of URLs per class, or per kind with --negatives, over all searches and queries."""

    openverse_url: str = "https://api.openverse.org/v1/images/"
    """URL of the Openverse search API, or of a mirror."""

    commons_url: str = "https://commons.wikimedia.org/w/api.php"
    """URL of the Wikimedia Commons API, or of a mirror."""

    def __post_init__(self) -> None:
        if self.per_class < 1:
            raise ConfigError(f"--per-class is {self.per_class}; it must be at least 1.")
