"""The guide to Firehose holds: its programs, its proxies, its limits.

What holds for all pages of the documentation is in ``tests/test_docs.py``.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from jinja2 import DictLoader

from flask_sockets2.firehose import early, pushes, streaming
from flask_sockets2.firehose.cli import firehose_cli
from tests.firehose.conftest import HAPROXY
from tests.firehose.test_proxies import nginx_version
from tests.firehose.test_wire import Client
from tests.processes import Certificate, Server, Servers, nginx_program
from tests.proxies import haproxy_in_front, nginx_in_front
from tests.test_docs import FIREHOSE, ROOT, blocks, run

if TYPE_CHECKING:
    from playwright.sync_api import Page

TEXT = FIREHOSE.read_text()

NAVIGATION = {"Sec-Fetch-Mode": "navigate", "X-Early-Hints": "1"}


def templates() -> dict[str, str]:
    """The templates of the guide by their names."""
    found = {}
    for block in blocks(FIREHOSE, "html[+]jinja"):
        named = re.match(r"\{# templates/(\S+) #\}\n", block)
        assert named is not None, block
        found[named[1]] = block
    return found


@pytest.fixture
def guide() -> SimpleNamespace:
    """What the programs define."""
    namespace = SimpleNamespace(**run(FIREHOSE))
    namespace.app.jinja_loader = DictLoader(templates())
    return namespace


def test_the_report_is_sent_in_two_pieces(guide: SimpleNamespace) -> None:
    answer = guide.app.test_client().get("/report", buffered=False)
    head, rest = (piece.decode() for piece in answer.iter_encoded())
    assert answer.headers["Link"] == "</static/app.css>; rel=preload; as=style"
    assert head.rstrip().endswith("</head>")
    assert '<link rel="stylesheet" href="/static/app.css">' in head
    assert "<li>Tea</li><li>Milk</li><li>Sugar</li>" in rest


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (
            "/shop",
            "</static/app.css>; rel=preload; as=style, </static/shop.js>; rel=preload; as=script",
        ),
        (
            "/account",
            "</static/account.css>; rel=preload; as=style, "
            "<https://images.example.com>; rel=preconnect",
        ),
    ],
)
def test_the_pages_with_hints_send_them_and_have_them_in_their_header(
    path: str, value: str, guide: SimpleNamespace
) -> None:
    sent: list[Any] = []
    environ = {"wsgi.early_hints": sent.append}
    client = guide.app.test_client()
    answer = client.get(path, headers=NAVIGATION, environ_overrides=environ)
    assert sent == [[("Link", value)]]
    assert answer.headers["Link"] == value


def test_the_page_with_pushes_has_them_in_its_header(guide: SimpleNamespace) -> None:
    assert guide.app.test_client().get("/about").headers["Link"] == (
        "</static/about.css>; rel=preload; as=style, "
        "</static/about.js>; rel=preload; nopush; as=script, "
        "</static/data>; rel=preload; as=fetch; crossorigin"
    )


SERVED = """
    @app.get("/static/app.css")
    @app.get("/static/shop.js")
    def file():
        return "", {"Content-Type": "text/css" if "css" in request.path else "text/javascript"}


    @app.get("/favicon.ico")
    def favicon():
        return "", 204
"""


def program() -> str:
    """The programs, with the files that their pages name."""
    text = "\n".join(blocks(FIREHOSE, "python"))
    text = text.replace("Flask(__name__)", "Flask(__name__, static_folder=None)")
    text = text.replace('url_for("static", filename="shop.js")', '"/static/shop.js"')
    return f"from flask import request\n{text}\n" + SERVED.replace("\n    ", "\n")


def test_haproxy_as_shown_passes_hints_to_http_2_and_to_nobody_who_says_that_he_is_it(
    gunicorn: Callable[..., Server],
    server_factory: Servers,
    certificate: Certificate,
    trusting_page: Page,
) -> None:
    app = gunicorn(program())
    proxy = haproxy_in_front(server_factory, app.port, HAPROXY, certificate)
    trusting_page.goto(proxy.url("/shop"))
    answered = "performance.getEntriesByType('navigation')[0].firstInterimResponseStart"
    assert trusting_page.evaluate(answered) > 0

    plain = haproxy_in_front(server_factory, app.port, HAPROXY)
    client = Client(plain)
    with client.sock:
        client.ask("/shop", *(f"{name}: {value}" for name, value in NAVIGATION.items()))
        assert client.read(b"a page that takes its time").startswith(b"HTTP/1.1 200 OK\r\n")


def test_nginx_as_shown_is_understood_from_1_29_on(
    gunicorn: Callable[..., Server], server_factory: Servers, certificate: Certificate
) -> None:
    (block,) = blocks(FIREHOSE, "nginx")
    program_ = nginx_program()
    if program_ is None:
        pytest.skip("no nginx: apt-get install nginx-light")
    if nginx_version() >= (1, 29):
        proxy = nginx_in_front(server_factory, gunicorn(program()).port, block, certificate)
        assert proxy.secure
        return
    config = server_factory.folder / "nginx.conf"
    config.write_text("events {}\nhttp { server { location / { early_hints $request_uri; } } }\n")
    done = subprocess.run(
        [program_, "-t", "-p", server_factory.folder, "-c", config, "-e", "stderr"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert 'unknown directive "early_hints"' in done.stderr


def test_the_command_of_the_guide_is_there(guide: SimpleNamespace) -> None:
    (command,) = blocks(FIREHOSE, "console")
    words = shlex.split(command)
    assert words[:2] == ["flask", "firehose"]
    result = guide.app.test_cli_runner().invoke(firehose_cli, [words[2], "--help"])
    assert result.exit_code == 0
    result = guide.app.test_cli_runner().invoke(firehose_cli, words[2:])
    assert "SECRET_KEY" in result.output  # it needs one before it asks anybody


def test_the_guide_says_what_the_code_does() -> None:
    migration = (ROOT / "docs" / "migrating-from-flask-firehose.rst").read_text()
    words = " ".join((TEXT + migration).split())
    assert f"at most {early._MAX_LEARNED} for an endpoint" in words
    assert f"up to {pushes._MAX_HEADER // 1024} KiB" in words
    assert f"exceeds {pushes._MAX_REMEMBERED // 1024} KiB of the cookie" in words
    shown = re.sub(r"<[^>]+>", "", streaming.CUT_SHORT).strip()
    assert f'"{shown}."' in words or shown in words
