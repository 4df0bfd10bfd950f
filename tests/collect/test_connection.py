"""Connections: private addresses are refused, names resolved once, certificates checked."""

import datetime
import socket
import ssl
from pathlib import Path

import pytest

from drone.collect.connection import is_public_address, tls_context
from drone.collect.fetch import fetch
from tests.collect.website import (
    Website,
    download_one,
    image_bytes,
    redirects,
    responds,
    settings_with,
)

PRIVATE = (
    "127.0.0.1",
    "localhost",
    "[::1]",
    "169.254.169.254",
    "10.0.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "2130706433",
    "0x7f.1",
    "[::ffff:127.0.0.1]",
    "[::ffff:10.0.0.1]",
    "[fe80::1]",
    "[fd00::1]",
    "[ff02::1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
)


def test_private_addresses_are_refused(site: Website) -> None:
    site.routes["/a.jpg"] = responds(image_bytes())
    for host in PRIVATE:
        outcome = download_one(site.url("/a.jpg", host=host), allow_private=False)
        assert outcome.reason == "private-address", (host, outcome)
    assert site.paths == []
    assert (
        is_public_address("8.8.8.8")
        and is_public_address("2606:4700::1111")
        and is_public_address("::ffff:8.8.8.8")
    )


def test_the_checked_address_is_the_one_connected_to(
    site: Website, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a redirect, with DNS rebinding, and with a proxy in the environment."""
    site.routes["/to-private"] = redirects("http://10.0.0.1/secret")
    site.routes["/a.jpg"] = responds(image_bytes())
    monkeypatch.setenv("http_proxy", site.url("/proxy"))
    resolved: list[str] = []
    real = socket.getaddrinfo

    def rebinding(host: str, port: int, *rest: object, **more: int) -> list[tuple[object, ...]]:
        """Resolves to a public address at first and to loopback ever after."""
        resolved.append(host)
        return real("192.0.2.1" if len(resolved) == 1 else "127.0.0.1", port, **more)

    def public(address: str) -> bool:
        return address in ("127.0.0.1", "192.0.2.1")

    # Treats loopback as public, so that only the redirect's target is refused.
    monkeypatch.setattr("drone.collect.connection.is_public_address", public)
    outcome = download_one(site.url("/to-private"), allow_private=False)
    assert (outcome.reason, "10.0.0.1" in outcome.detail) == ("private-address", True)
    monkeypatch.setattr("socket.getaddrinfo", rebinding)
    connected: list[object] = []
    monkeypatch.setattr(
        "socket.socket.connect", lambda _, address: connected.append(address) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        fetch(
            site.url("/a.jpg", host="name.test"), settings_with(allow_private=False), lambda _: None
        )
    assert connected == [("192.0.2.1", site.port)], "the address that was checked"
    assert resolved == ["name.test"], "and the name was resolved once"
    assert "/proxy" not in site.paths


def self_signed_certificate(name: str, folder: Path) -> Path:
    """Writes a self-signed certificate and its key to a file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    encoding, key_format = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private_key = key.private_bytes(encoding, key_format, serialization.NoEncryption())
    file.write_bytes(certificate.public_bytes(encoding) + private_key)
    return file


def test_the_certificate_must_match_the_host_name(
    site: Website, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = self_signed_certificate("images.test", tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    server_names: list[str] = []
    context.set_servername_callback(lambda _, name, __: server_names.append(name))
    site.server.socket = context.wrap_socket(site.server.socket, server_side=True)
    site.routes["/a"] = responds(image_bytes())
    real = socket.getaddrinfo
    monkeypatch.setattr(
        "socket.getaddrinfo", lambda _, *rest, **more: real("localhost", *rest, **more)
    )
    url = f"https://images.test:{site.port}/a"
    assert download_one(url, num_retries=0).reason == "certificate", "it is not trusted"
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    tls_context.cache_clear()
    assert download_one(url).data == image_bytes()
    assert server_names[-1] == "images.test"
    assert site.hosts == [f"images.test:{site.port}"]
    assert download_one(url.replace("images", "other")).reason == "certificate"
    tls_context.cache_clear()
