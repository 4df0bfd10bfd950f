"""Whether other machines reach an address that a server listens on."""

import contextlib
import ipaddress


def is_reached_by_others(host: str) -> bool:
    """Whether other machines reach a server that listens on this address or name.

    A name other than localhost counts as reached, whatever it resolves to today.
    """
    if host == "localhost":
        return False
    with contextlib.suppress(ValueError):
        return not ipaddress.ip_address(host).is_loopback
    return True
