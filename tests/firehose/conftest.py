from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.processes import Certificate, Server, Servers, chromium_program
from tests.proxies import caddy_in_front, haproxy_in_front, nginx_in_front
from tests.test_docs import FIREHOSE, blocks

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HAPROXY, CADDY = blocks(FIREHOSE, "text")


@pytest.fixture
def haproxy(server_factory: Servers, certificate: Certificate) -> Callable[[Server], Server]:
    """``haproxy(upstream)``: HAProxy with TLS and HTTP/2, which says that it passes a 103."""
    return lambda upstream: haproxy_in_front(server_factory, upstream.port, HAPROXY, certificate)


@pytest.fixture
def caddy(server_factory: Servers, certificate: Certificate) -> Callable[[Server], Server]:
    """``caddy(upstream)``: Caddy with TLS and HTTP/2, which says that it passes a 103."""
    return lambda upstream: caddy_in_front(server_factory, upstream.port, CADDY, certificate)


@pytest.fixture
def secure_nginx(server_factory: Servers, certificate: Certificate) -> Callable[..., Server]:
    """``secure_nginx(upstream, text)``: nginx with TLS and HTTP/2."""
    return lambda upstream, *text: nginx_in_front(
        server_factory, upstream.port, *text, certificate=certificate
    )


@pytest.fixture(scope="module")
def trusting_browser(certificate: Certificate) -> Iterator[Browser]:
    """A headless Chromium that trusts the certificate of the tests.

    By its key: while it overlooks errors of certificates its HTTP cache is off, and what was
    fetched early would be fetched again.
    """
    program = chromium_program()
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium-headless-shell, or set CHROMIUM")
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright")
    key = x509.load_pem_x509_certificate(certificate.certfile.read_bytes()).public_key()
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    trusted = base64.b64encode(hashlib.sha256(info).digest()).decode()
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=program,
            args=[
                "--disable-background-networking",
                "--disable-quic",
                f"--ignore-certificate-errors-spki-list={trusted}",
            ],
        )
        yield chromium
        chromium.close()


@pytest.fixture
def trusting_page(trusting_browser: Browser) -> Iterator[Page]:
    """A new page without cookies and cache."""
    context = trusting_browser.new_context()
    context.set_default_timeout(60_000)
    yield context.new_page()
    context.close()
