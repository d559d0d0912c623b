"""How long Chromium takes for a page that is slow to make: plain, hinted, its head first."""

from __future__ import annotations

import base64
import hashlib
import http.client
import importlib.util
import os
import shutil
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .measure import Cores, Sample
from .results import PAGE_LOAD, Results
from .servers import Peer, Server, gunicorn
from .tables import format_figure, spread, table

ROUNDS = 7
QUICK_ROUNDS = 3
LOAD_TIMEOUT = 10_000  # milliseconds
CHROMIUM = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")

HAPROXY = """\
global
    maxconn 200

defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s

frontend public
    bind "127.0.0.1:${{PORT}}" ssl crt {certificate} alpn h2,http/1.1
    http-request set-header X-Early-Hints 1
    default_backend app

backend app
    server app1 127.0.0.1:{port}
"""

# Resource Timing; the paint is told a moment after the load.
TIMES = """() => new Promise((done) => {
    new PerformanceObserver((list, observer) => {
        const paint = list.getEntriesByName("first-contentful-paint")[0];
        if (!paint) return;
        observer.disconnect();
        const style = performance.getEntriesByType("resource").find((e) => e.name.includes("slow"));
        done({
            load_ms: performance.getEntriesByType("navigation")[0].loadEventStart,
            shown_ms: paint.startTime,
            early: Number(style.initiatorType === "early-hints"),
        });
    }).observe({ type: "paint", buffered: true });
})"""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to load the page.

    :param proxied: through HAProxy, by HTTP/2; else from the worker, by HTTP/1.1.
    """

    name: str
    title: str
    path: str
    proxied: bool


WAYS = (
    Way("plain", "plain, HTTP/1.1", "/plain", False),
    Way("flushed", "head first, HTTP/1.1", "/flushed", False),
    Way("plain-haproxy", "plain, HAProxy", "/plain", True),
    Way("link-haproxy", "Link in the response, HAProxy", "/link", True),
    Way("hinted-haproxy", "103, HAProxy", "/hinted", True),
    Way("flushed-haproxy", "head first, HAProxy", "/flushed", True),
)


class _Page(Peer):
    """A server of pages instead of WebSockets."""

    def check(self, port: int, timeout: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        if self.name == "haproxy":
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = http.client.HTTPSConnection(
                "127.0.0.1", port, timeout=timeout, context=context
            )
        try:
            connection.request("GET", "/ready")
            if connection.getresponse().status != 204:
                raise ConnectionError("it serves something else")
        finally:
            connection.close()


def measure(cores: Cores, quick: bool, results: Results) -> None:
    """Load the page in each way, in turns, each time in a browser without a cache."""
    program, haproxy = chromium_program(), haproxy_program()
    for package in ("playwright", "trustme"):
        if importlib.util.find_spec(package) is None:
            results.note(f"page loads are left out: {package} is not installed")
            return
    if program is None:
        results.note("page loads are left out: there is no Chromium")
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        certificate, key_hash = _certificate(folder)
        command = gunicorn("-k", "flask_sockets2.worker", "benchmarks.peers.slow_page:app")
        app = stack.enter_context(Server(_Page("page", "page", command, ()), cores.server))
        bases = {False: f"http://127.0.0.1:{app.port}"}
        if haproxy is None:
            results.note("there is no haproxy: pages were loaded without it only")
        else:
            config = folder / "haproxy.cfg"
            config.write_text(HAPROXY.format(certificate=certificate, port=app.port))
            words = ("sh", "-c", f"PORT={{port}} exec {haproxy} -db -f {config}")
            peer = _Page("haproxy", "HAProxy", words, ())
            proxy = stack.enter_context(Server(peer, cores.server))
            bases[True] = f"https://127.0.0.1:{proxy.port}"
        browser = stack.enter_context(_browser(program, key_hash))
        for _ in range(QUICK_ROUNDS if quick else ROUNDS):
            for way in WAYS:
                if way.proxied in bases:
                    sample = _load(browser, bases[way.proxied] + way.path)
                    results.add(PAGE_LOAD, way.name, sample)
                    if bool(sample["early"]) != (way.name == "hinted-haproxy"):
                        results.note(f"{way.title}: the stylesheet was not fetched as it should be")


def report(results: Results) -> str:
    """Return the table."""
    rows = []
    for way in WAYS:
        loads = results.values(PAGE_LOAD, way.name, "load_ms")
        if loads:
            shown = results.median(PAGE_LOAD, way.name, "shown_ms") or 0.0
            load = results.median(PAGE_LOAD, way.name, "load_ms") or 0.0
            rows.append((way.title, format_figure(load), spread(loads), format_figure(shown)))
    title = "A page of 600 ms with a stylesheet of 400 ms"
    return table(title, ("way", "loaded ms", "", "shown ms"), rows)


def _load(browser: Any, url: str) -> Sample:
    context = browser.new_context()
    context.set_default_timeout(LOAD_TIMEOUT)
    try:
        page = context.new_page()
        page.goto(url)
        sample: Sample = page.evaluate(TIMES)
        return sample
    finally:
        context.close()


def haproxy_program() -> str | None:
    """Return the path of HAProxy; Debian keeps it where only root looks."""
    return shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")


def chromium_program() -> str | None:
    """Return the path of the variable ``CHROMIUM``, else of the first browser that there is."""
    names = (os.environ.get("CHROMIUM", ""), *CHROMIUM)
    return next((path for name in names if name and (path := shutil.which(name))), None)


@contextmanager
def _browser(program: str, key_hash: str) -> Iterator[Any]:
    """A browser that trusts our key; without that it would not use its cache."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program,
            args=[
                "--disable-background-networking",
                f"--ignore-certificate-errors-spki-list={key_hash}",
            ],
        )
        yield browser
        browser.close()


def _certificate(folder: Path) -> tuple[Path, str]:
    """Return a file with a key and a certificate, and the hash of the key."""
    import trustme
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    issued = trustme.CA().issue_cert("127.0.0.1")
    both = folder / "both.pem"
    both.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    key = x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes()).public_key()
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return both, base64.b64encode(hashlib.sha256(info).digest()).decode()
