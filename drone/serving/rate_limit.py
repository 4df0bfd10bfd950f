"""A limit on the requests of each client: a bucket of tokens for each, in bounded memory."""

import collections
import ipaddress
import time
from collections.abc import Callable

_BURST_S = 10.0
"""Seconds whose requests may come at once."""

_MIN_BURST = 10.0
"""Requests that may come at once, however low the limit: a page asks for several things."""

_MAX_BUCKETS = 10_000
"""Clients that are kept apart; beyond it, the one that was quiet for longest starts anew."""

_IPV6_NETWORK_BITS = 64
"""Bits that a provider gives to one customer, who may use any address below them."""

_MAX_NAME_LENGTH = 64
"""Characters of an address that is none; a client may have written it."""


class RateLimiter:
    """Buckets of tokens by client; of one thread."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Creates the limiter.

        Args:
            per_minute: Requests per minute of each client.
            clock: Returns seconds.
        """
        self._per_s = per_minute / 60
        self._capacity = max(_MIN_BURST, self._per_s * _BURST_S)
        self._clock = clock
        self._buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

    def take(self, client: str) -> float:
        """Takes a token of a client; returns 0, or the seconds until there is one again."""
        now = self._clock()
        tokens, then = self._buckets.get(client, (self._capacity, now))
        tokens = min(self._capacity, tokens + (now - then) * self._per_s)
        is_admitted = tokens >= 1
        self._buckets[client] = (tokens - is_admitted, now)
        self._buckets.move_to_end(client)
        if len(self._buckets) > _MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return 0.0 if is_admitted else (1 - tokens) / self._per_s


def network_of(address: str) -> str:
    """Returns what stands for a client's address: an IPv4 address, or the network of an IPv6 one.

    Anything else, such as a name that a proxy sends, stands for itself, cut at 64 characters.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:_MAX_NAME_LENGTH]
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((int(found), _IPV6_NETWORK_BITS), strict=False))
