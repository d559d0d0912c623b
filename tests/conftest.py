from __future__ import annotations

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import processes
from tests.plugin_no_skips import (  # noqa: F401 (pytest finds hooks by name)
    pytest_make_collect_report,
    pytest_runtest_makereport,
)
from tests.plugin_no_threads import pytest_runtest_setup, pytest_runtest_teardown  # noqa: F401
from tests.processes import Server, Servers
from tests.proxies import nginx_in_front

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[1]

SURFACES = ("flask", "werkzeug", "gevent", "gunicorn", "websockets", "redis", "sqlalchemy")

OTHER_SERVERS = re.compile(
    r"[-\[](stock|sync|gthread|gevent(_pywsgi|-websocket)?"
    r"|gunicorn (-k gevent\S*|--threads\S*)|our handler|wrapped)[-\]]"
)
"""Their names in the ids of tests."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Run in the background by a shell; the servers would inherit it, and are to end on Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """What the tests run with, for who reads a log of several runs."""
    return "with: " + ", ".join(f"{name} {version(name)}" for name in SURFACES)


def pytest_collection_finish() -> None:
    """An example of Hypothesis may take as long as it takes."""
    if "hypothesis" in sys.modules:
        from hypothesis import HealthCheck, settings

        patience = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
        settings.register_profile("patient", settings(), **patience)
        settings.load_profile("patient")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Each reason why tests were skipped, in one line."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(each.longrepr[2].removeprefix("Skipped: ") for each in skipped)
    for reason, number in sorted(reasons.items()):
        terminalreporter.write_line(f"skipped {number}: {' '.join(reason.split())}")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests as slow that repeat a test on another server, or that start a server of their own
    or use a browser and are not marked as quick."""
    for item in items:
        starts = {"server_factory", "browser"}.intersection(getattr(item, "fixturenames", ()))
        is_quick = item.get_closest_marker("quick") is not None
        if OTHER_SERVERS.search(item.name) or (starts and not is_quick):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Tests wait for servers more than they compute."""
    return 2 * (os.cpu_count() or 1)


@pytest.fixture
def unused_port() -> int:
    return processes.unused_port()


@pytest.fixture
def server_factory(tmp_path: Path) -> Iterator[Servers]:
    """All ways of starting a server; each is stopped when the test ends."""
    with processes.servers_in(tmp_path) as factory:
        yield factory


@pytest.fixture
def gunicorn(server_factory: Servers) -> Callable[..., Server]:
    """``gunicorn(source, worker=..., args=[...])``: see :meth:`Servers.gunicorn`."""
    return server_factory.gunicorn


@pytest.fixture
def flask_run(server_factory: Servers) -> Callable[..., Server]:
    """``flask_run(source, args=["--reload"])``: see :meth:`Servers.flask_run`."""
    return server_factory.flask_run


@pytest.fixture
def pywsgi_server(server_factory: Servers) -> Callable[..., Server]:
    """``pywsgi_server(source, port=...)`` runs ``python app.py``: see :meth:`Servers.script`."""
    return server_factory.script


@pytest.fixture
def nginx(server_factory: Servers) -> Callable[[Server], Server]:
    """``nginx(upstream)``: a real nginx in front of a server."""
    if processes.nginx_program() is None:
        pytest.skip("no nginx: apt-get install nginx-light")
    return lambda upstream: nginx_in_front(server_factory, upstream.port)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium.

    Not for the whole session: while it is open its event loop counts as running in this
    thread, so that a test elsewhere could not call ``asyncio.run``.
    """
    program = processes.chromium_program()
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium-headless-shell, or set CHROMIUM")
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install playwright"
    )
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=program,
            args=["--disable-background-networking", "--disable-quic"],
        )
        yield chromium
        chromium.close()


@pytest.fixture
def new_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages that share neither cookies nor connections; an error in their scripts fails the
    test. It takes the options of a browser's context."""
    contexts = []
    errors: list[str] = []

    def open_page(**options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def page(new_page: Callable[..., Page]) -> Page:
    """A new page without cookies; an error in its scripts fails the test."""
    return new_page()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> processes.Certificate:
    """A certificate for 127.0.0.1 and localhost, and the authority that a client must trust."""
    return processes.make_certificate(tmp_path_factory.mktemp("certificate"))
