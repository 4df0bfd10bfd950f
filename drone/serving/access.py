"""Who may use the HTTP server, and how often."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drone.errors import ConfigError
from drone.serving.api import ApiError
from drone.serving.api_keys import ApiKeys, key_in
from drone.serving.rate_limit import RateLimiter, network_of


@dataclass(frozen=True, kw_only=True)
class AccessSettings:
    """Who may use the HTTP API, and how often."""

    api_key_file: Path | None = None
    """File of API keys, one "NAME KEY" per line; predictions, the model and the metrics then need
    one of them. A change to the file takes effect with the next request."""

    rate_limit: float | None = None
    """Requests per minute for each API key, or for each client address where there are no keys;
    further ones are answered 429. Bursts are allowed: up to ten seconds' worth of requests at once,
    and never fewer than ten (default: no limit)."""

    open_to_all: bool = False
    """Let everyone who reaches --host use the model, without API keys."""

    def __post_init__(self) -> None:
        if self.rate_limit is not None and not 0 < self.rate_limit < math.inf:
            raise ConfigError(f"--rate-limit is {self.rate_limit}; it must be above 0.")
        if self.open_to_all and self.api_key_file is not None:
            raise ConfigError("--open-to-all and --api-key-file exclude each other.")


class Access:
    """Admits requests by their API key, and limits those of each client; of one thread."""

    def __init__(self, settings: AccessSettings | None = None) -> None:
        """Reads the keys; without settings everyone is admitted.

        Raises:
            ConfigError: The file of keys cannot be read, or is not a list of keys.
        """
        settings = settings or AccessSettings()
        self._keys = ApiKeys(settings.api_key_file) if settings.api_key_file else None
        self._limiter = RateLimiter(settings.rate_limit) if settings.rate_limit else None

    def check_key(self, headers: Mapping[str, str], address: str) -> str | None:
        """Returns the name of a request's key; None if no keys are needed.

        Args:
            headers: Values by header name in lower case.
            address: The client's address, whose wrong keys count towards its limit.

        Raises:
            ApiError: The key is missing or unknown, or there were too many of these.
        """
        if self._keys is None:
            return None
        name = self._keys.name_of(headers)
        if name is None:
            self._take(f"address {network_of(address)}")
            raise _unauthorised(bool(key_in(headers)))
        return name

    def limit(self, name: str | None, address: str) -> None:
        """Counts a request towards the limit of its key, or of its address without one.

        Raises:
            ApiError: There were too many.
        """
        self._take(f"address {network_of(address)}" if name is None else f"key {name}")

    def _take(self, client: str) -> None:
        wait_s = self._limiter.take(client) if self._limiter else 0.0
        if wait_s:
            message = "There were too many requests; try again after the time in Retry-After."
            headers = {"Retry-After": str(math.ceil(wait_s))}
            raise ApiError(429, "rate-limited", message, headers)


def _unauthorised(has_key: bool) -> ApiError:
    what = "The API key is not valid." if has_key else "An API key is missing."
    message = f"{what} Send one in the header Authorization: Bearer KEY, or X-API-Key: KEY."
    challenge = 'Bearer error="invalid_token"' if has_key else "Bearer"
    return ApiError(401, "unauthorised", message, {"WWW-Authenticate": challenge})
