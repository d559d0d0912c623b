"""The site is built without a warning, has every public name, and no link within it is broken."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import pytest

from tests.test_docs import DOCS, ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Page as BrowserPage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(450),  # it is built by the first of these tests
]

SOURCE = ROOT / "docs"
REFERENCE = sorted((SOURCE / "reference").glob("*.rst"))

PUBLIC = {
    "flask_sockets2": "flask_sockets2",
    "flask_sockets2.turbo": "flask_sockets2",
    "flask_sockets2.turbo.testing": "flask_sockets2.turbo.testing",
    "flask_sockets2.sse": "flask_sockets2.sse",
    "flask_sockets2.firehose": "flask_sockets2.firehose",
    "flask_sockets2.testing": "flask_sockets2.testing",
    "flask_sockets2.pytest_plugin": "flask_sockets2.pytest_plugin",
    "flask_sockets2.signals": "flask_sockets2.signals",
    "flask_sockets2.brokers.base": "flask_sockets2.brokers.base",
}
"""What may be imported, and where the reference has it, unless the package itself has it."""

NOT_FOR_USERS = {
    "flask_sockets2.signals.tell",
    "flask_sockets2.brokers.base.DAY",
    "flask_sockets2.brokers.base.MAX_MESSAGE_SIZE",
    "flask_sockets2.brokers.base.RESERVED",
    "flask_sockets2.brokers.base.silent_ttl",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E"]
    ran = subprocess.run(
        [*command, "-d", folder / "doctrees", SOURCE, folder / "html"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    assert ran.stdout == ""
    return folder / "html"


class Page(HTMLParser):
    """What a page leads to, and what can be led to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.ids: set[str] = set()
        self.menu: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.add(given.get("id") or "")
        link = given.get("href") or given.get("src") or ""
        if link:
            self.links.add(link)
            if "reference internal" in (given.get("class") or ""):
                self.menu.add(link)


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


@pytest.fixture(scope="module")
def names(site: Path) -> set[str]:
    """Those that the reference has, from the inventory that other projects link by."""
    head, _, packed = (site / "objects.inv").read_bytes().partition(b"zlib.\n")
    assert b"# Project: flask_sockets2\n" in head
    lines = zlib.decompress(packed).decode().splitlines()
    return {name for name, role, *_ in map(str.split, lines) if role.startswith("py:")}


def test_every_page_is_built_and_in_the_menu_of_every_page(
    site: Path, pages: dict[Path, Page]
) -> None:
    built = [
        path.relative_to(SOURCE).with_suffix(".html").as_posix() for path in [*DOCS, *REFERENCE]
    ]
    menu = {link.partition("#")[0] for link in pages[site / "index.html"].menu}
    assert {name for name in built if name != "index.html"} <= menu


def test_no_link_within_the_site_is_broken(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists() or (
                parts.fragment
                and target in pages
                and unquote(parts.fragment) not in pages[target].ids
            ):
                broken.append((path.relative_to(site).as_posix(), link))
    assert broken == []


def test_no_page_fetches_anything_from_elsewhere(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        outside = [link for link in page.links if urlsplit(link).netloc and link.endswith(".js")]
        assert outside == [], path.name


def test_every_public_name_is_in_the_reference(names: set[str]) -> None:
    missing = set()
    for module, where in PUBLIC.items():
        for name in import_module(module).__all__:
            if f"{module}.{name}" not in NOT_FOR_USERS:
                missing |= {f"{where}.{name}", f"flask_sockets2.{name}"} & names or {
                    f"{module}.{name}"
                }
    assert missing <= names


def members(cls: Any) -> set[str]:
    """Public methods and properties of a class that are written in this package."""
    found = set()
    for name in dir(cls):
        member = inspect.getattr_static(cls, name)
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        written_in = str(getattr(function, "__module__", ""))
        if not name.startswith("_") and written_in.startswith("flask_sockets2"):
            found.add(name)
    return found


@pytest.mark.parametrize(
    "name",
    [
        "flask_sockets2.Sockets",
        "flask_sockets2.Connection",
        "flask_sockets2.Publisher",
        "flask_sockets2.Broker",
        "flask_sockets2.Turbo",
        "flask_sockets2.Firehose",
        "flask_sockets2.sse.Progress",
        "flask_sockets2.sse.PubSub",
        "flask_sockets2.sse.ServerSentEventsBlueprint",
        "flask_sockets2.testing.SocketsClient",
        "flask_sockets2.testing.WebSocketSession",
        "flask_sockets2.turbo.testing.Broadcasts",
    ],
)
def test_every_method_of_a_class_is_in_the_reference(name: str, names: set[str]) -> None:
    module, _, called = name.rpartition(".")
    public = members(getattr(import_module(module), called))
    public -= {"register"}  # Flask's
    assert public
    assert {member for member in public if f"{name}.{member}" not in names} == set()


def test_every_attribute_of_a_connection_is_in_the_reference(names: set[str]) -> None:
    named = set(re.findall(r"``ws\.(\w+)", (SOURCE / "websocket.rst").read_text()))
    assert {each for each in named if f"flask_sockets2.Connection.{each}" not in names} == set()


def test_every_exception_and_every_command_is_in_the_reference(
    site: Path, names: set[str], pages: dict[Path, Page]
) -> None:
    from flask_sockets2 import exceptions
    from flask_sockets2.firehose.cli import firehose_cli
    from flask_sockets2.tools.cli import sockets_cli
    from flask_sockets2.turbo.cli import turbo_cli

    for name, value in vars(exceptions).items():
        if inspect.isclass(value) and value.__module__ == exceptions.__name__:
            assert f"flask_sockets2.{name}" in names
    ids = pages[site / "reference" / "commands.html"].ids
    for group in (sockets_cli, turbo_cli, firehose_cli):
        assert {f"flask-{group.name}-{name}" for name in group.commands} <= ids


def test_every_file_of_the_examples_is_shown_and_what_pages_name_of_them_is_a_link(
    pages: dict[Path, Page], site: Path
) -> None:
    shown = set(
        re.findall(r"^   (examples/\S+)$", (SOURCE / "examples.rst").read_text(), re.MULTILINE)
    )
    files = [
        path for path in (ROOT / "examples").rglob("*") if path.suffix in (".py", ".js", ".html")
    ]
    assert {path.relative_to(ROOT).as_posix() for path in files if path.stat().st_size} == shown
    assert "examples.html#examples-chat-py" in pages[site / "tutorial.html"].links
    assert "#security-md" in pages[site / "security.html"].links


def test_the_names_of_pages_are_links(pages: dict[Path, Page], site: Path) -> None:
    assert "docs/channels.rst" not in (site / "websocket.html").read_text()
    assert "channels.html" in pages[site / "websocket.html"].links


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def found(words: str, page: BrowserPage, address: str) -> list[str]:
    """Search the site, and return the pages that it finds, best first."""
    page.goto(f"{address}/search.html?q={quote(words)}", timeout=30_000)
    page.wait_for_selector("text=/found .* matching/", timeout=30_000)
    links = page.locator("#search-results li a").evaluate_all("all => all.map(a => a.pathname)")
    return list(dict.fromkeys(link.strip("/").removesuffix(".html") for link in links))


@pytest.mark.parametrize(
    "words", ["socket.io", "Flask-SocketIO", "emit", "room", "broadcast", "acknowledgement"]
)
def test_the_page_about_socket_io_is_among_the_first_that_a_search_finds(
    words: str, page: BrowserPage, address: str
) -> None:
    assert "moving-from-flask-socketio" in found(words, page, address)[:3]


@pytest.mark.parametrize(
    ("words", "guides"),
    [
        ("user", {"limits", "authentication", "turbo-users"}),
        ("reconnect", {"channels", "reconnecting"}),
        ("nginx", {"deployment"}),
        ("Celery", {"jobs"}),
        ("progress", {"sse", "examples"}),
        ("LLM", {"sse", "index"}),
    ],
)
def test_a_search_for_a_task_finds_its_guide_among_the_first(
    words: str, guides: set[str], page: BrowserPage, address: str
) -> None:
    assert guides & {*found(words, page, address)[:4]}


# Keys that are broken over lines, tables wider than the text, a page wider than the window.
FAULTS = """() => {
    const broken = ({ textContent, children }) =>
        /^(SOCKETS|TURBO|SSE|FIREHOSE)_[A-Z_]+$/.test(textContent) &&
        new Set([...children[0].getClientRects()].map((each) => each.top)).size > 1;
    const keys = [...document.querySelectorAll("table code")].filter(broken);
    const tables = [...document.querySelectorAll(".table-wrapper")];
    const page = document.documentElement;
    return [
        ...keys.map((key) => key.textContent),
        ...tables.filter((each) => each.scrollWidth > each.clientWidth + 1).map(() => "a table"),
        ...(page.scrollWidth > innerWidth ? ["the page"] : []),
    ];
}"""

WIDE = {"genindex.html", "operations.html"}  # on a phone


@pytest.mark.parametrize("width", [390, 1280, 1440])
def test_tables_fit_and_no_key_of_the_configuration_is_broken_over_lines(
    width: int, new_page: Callable[..., BrowserPage], address: str, site: Path
) -> None:
    page = new_page(viewport={"width": width, "height": 900})
    page.route("**/*.js", lambda route: route.abort())
    faults = {}
    for path in site.rglob("*.html"):
        name = path.relative_to(site).as_posix()
        if width > 390 or name not in WIDE:
            page.goto(f"{address}/{name}", timeout=60_000)
            faults[name] = page.evaluate(FAULTS)
            if width == 390:  # where a key may be wider than its column
                faults[name] = [each for each in faults[name] if not each.isupper()]
    assert {name: found for name, found in faults.items() if found} == {}
