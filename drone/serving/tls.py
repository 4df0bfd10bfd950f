"""TLS: a certificate and its key, checked before the server listens."""

import contextlib
import ssl
from dataclasses import dataclass
from pathlib import Path

from drone.errors import ConfigError

_NOT_YET_VALID, _EXPIRED = 9, 10
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""

_ROUNDS = 3
"""Turns of client and server until a handshake is done."""


@dataclass(frozen=True, kw_only=True)
class TlsSettings:
    """Encryption of connections."""

    tls_cert: Path | None = None
    """Certificate in PEM for https, followed by those of its issuers; needs --tls-key."""

    tls_key: Path | None = None
    """Private key of --tls-cert in PEM, without a passphrase."""

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            missing = "--tls-cert" if self.tls_cert is None else "--tls-key"
            raise ConfigError(f"{missing} is missing: TLS needs a certificate and its key.")


def tls_context(settings: TlsSettings) -> ssl.SSLContext | None:
    """Returns what encrypts the connections of a server; None without a certificate.

    Raises:
        ConfigError: A file cannot be read or is not in PEM, the key is of another certificate or
            has a passphrase, or the certificate is not valid today.
    """
    certificate, key = settings.tls_cert, settings.tls_key
    if certificate is None or key is None:
        return None
    for file in (certificate, key):
        _check_readable(file)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])

    def refuse_passphrase() -> str:
        raise ConfigError(f"The key {key} has a passphrase; save it without one for the server.")

    try:
        # Without a function, OpenSSL would ask on the terminal.
        context.load_cert_chain(certificate, key, password=refuse_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"The key {key} is not that of the certificate {certificate}; name a pair that "
                f"belongs together."
            ) from error
        raise ConfigError(
            f"The certificate {certificate} and the key {key} cannot be used together: "
            f"{error.reason or error}. Both must be in PEM."
        ) from error
    _check_dates(context, certificate)
    return context


def _check_readable(file: Path) -> None:
    try:
        file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.") from error


def _check_dates(context: ssl.SSLContext, certificate: Path) -> None:
    """Makes a handshake in memory with a client that trusts this certificate, and its date alone.

    Other doubts of the client, such as who issued it, are for real clients to judge.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(certificate)
    try:
        _shake_hands(context, client)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _EXPIRED:
            raise ConfigError(f"The certificate {certificate} has expired; renew it.") from error
        if error.verify_code == _NOT_YET_VALID:
            raise ConfigError(
                f"The certificate {certificate} is not valid yet; check this machine's clock."
            ) from error
    except ssl.SSLError as error:
        raise ConfigError(
            f"No client can connect with the certificate {certificate} ({error.reason or error}). "
            f"Use a key of RSA, or of the curve P-256 or P-384."
        ) from error


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(_ROUNDS):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
