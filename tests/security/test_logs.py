"""What clients say makes no lines in a log, forges none, and says nothing to a terminal."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, session
from jinja2 import DictLoader

from flask_sockets2 import Firehose
from flask_sockets2.firehose import flush
from flask_sockets2.turbo import Turbo
from tests.processes import Server, servers_in, unused_port
from tests.wire_client import WireClient, close_frame, request

APPLICATION = """
import logging, sys
from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix
from flask_sockets2 import Sockets, WebSocketServer

logging.basicConfig()
logging.getLogger("flask_sockets2").setLevel(logging.INFO)

app = Flask(__name__)
app.wsgi_app = ProxyFix(app.wsgi_app)
sockets = Sockets(app)

@sockets.route("/echo/<path:name>")
def echo(ws, name):
    for message in ws:
        ws.send(message)

if __name__ == "__main__":
    WebSocketServer(("127.0.0.1", int(sys.argv[1])), app).serve_forever()
"""
FORMAT = "%(h)s %(u)s %(r)s %(U)s %(q)s %(s)s %(f)s %(a)s %({x-said}i)s"
FORGED = "\x9b31m\x85\xa0CRITICAL forged"  # what a header field may hold; C1 moves cursors, too


@pytest.fixture(scope="module", params=["our server", "gunicorn"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with servers_in(tmp_path_factory.mktemp("logs")) as servers:
        if request.param == "gunicorn":
            args = ["--access-logfile", "-", "--access-logformat", FORMAT]
            yield servers.gunicorn(APPLICATION, args=args)
        else:
            port = unused_port()
            yield servers.script(APPLICATION, port=port, args=[str(port)])


def assert_clean(server: Server) -> None:
    for line in server.output.split("\n"):
        assert line.isprintable(), ascii(line)
        assert not line.startswith("CRITICAL"), line
        assert "Traceback" not in line, server.output


def test_a_client_says_nothing_to_the_terminal_that_a_log_is_read_in(server: Server) -> None:
    said = dict.fromkeys(("User-Agent", "Referer", "Origin", "X-Said", "X-Forwarded-For"), FORGED)
    with WireClient(server.port) as client:  # refused for its origin, which the log says
        client.send(request("/echo/origin?q=\x9b", said))
        assert client.response().status == 403
    del said["Origin"]
    with WireClient(server.port) as client:
        client.send(request("/echo/%0aCRITICAL%20forged%0d%1b%5b31m", said))
        assert client.response().status == 101
        client.send(close_frame(4000, b"bye\nCRITICAL forged\r\x1b[31m"))
        assert client.closing() == (4000, "bye\nCRITICAL forged\r\x1b[31m")
    server.wait_for_output(r"^.*%0aCRITICAL%20forged.* 101 .*$")
    server.wait_for_output(r"closed .* with 4000")
    assert_clean(server)


def basic(user: bytes) -> str:
    """RFC 7617, which hides what is in it from who looks at the header field alone."""
    return "Basic " + base64.b64encode(user + b":password").decode()


@pytest.mark.parametrize(
    "user",
    [
        b"\nCRITICAL forged",
        b"\x1b[31mred",
        b"\x1b]0;title\x07",
        "\x9b31m\x85".encode(),
        "\u2028CRITICAL forged".encode(),
        b"\xff",
    ],
)
def test_the_name_of_a_user_says_nothing_to_the_terminal_either(
    server: Server, user: bytes
) -> None:
    """gunicorn decodes it for %(u)s, which is part of its own format."""
    path = f"/user/{user.hex()}"
    with WireClient(server.port) as client:
        client.send(request(path, {"Authorization": basic(user)}))
        assert client.response().status == 404
    server.wait_for_output(rf"{path} HTTP/1\.1.* 404 ")
    assert_clean(server)


@pytest.mark.parametrize("server", ["gunicorn"], indirect=True)
def test_the_name_of_a_user_that_can_be_printed_is_in_the_log(server: Server) -> None:
    with WireClient(server.port) as client:
        client.send(request("/user/name", {"Authorization": basic("Jürgen B.".encode())}))
        assert client.response().status == 404
    server.wait_for_output(r"^127\.0\.0\.1 Jürgen B\. GET /user/name HTTP/1\.1")


@pytest.mark.parametrize("number", sorted({*range(0x20), 0x7F} - {ord("\n")}))
def test_a_control_character_in_the_request_line_is_refused(server: Server, number: int) -> None:
    """RFC 9112 §3: it may be a line end to who reads the log, or to the proxy before us."""
    with WireClient(server.port) as client:
        client.send(f"GET /{number}{chr(number)}x HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert client.response().status == 400
    server.wait_for_output(rf"GET /{number}\\[xtr][0-9a-f]*x HTTP/1\.1.* 400 ")
    assert_clean(server)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /" + b"\x1b[2J" * 4000 + b" HTTP/1.1\r\n", 414),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # TLS
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nno field\r\n\r\n", 400),
    ],
    ids=["too long", "TLS", "one word", "no header field"],
)
def test_what_is_no_request_is_a_line_in_the_log_and_no_traceback(
    server: Server, sent: bytes, status: int
) -> None:
    """gunicorn's access log raised at it, so that each cost a traceback."""
    before = server.output.count(f" {status} ")
    with WireClient(server.port) as client:
        client.send(sent)
        assert client.response().status == status
    server.wait_for(lambda: server.output.count(f" {status} ") > before, "a line in the log")
    assert_clean(server)


def test_a_path_makes_no_line_where_a_page_is_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Flask(__name__)
    app.config.update(SECRET_KEY="x", DEBUG=True)
    app.jinja_loader = DictLoader({"page.html": "<head></head>{{ flush() }}{{ late() }}"})
    Firehose(app)
    Turbo(app)

    @app.get("/<path:name>")
    def changes_the_session_too_late(name: str) -> Any:
        return flush("page.html", late=lambda: session.update(late=True))

    @app.post("/<path:name>")
    def answers_a_form_with_200(name: str) -> str:
        return "<p>"

    client = app.test_client()
    client.get("/%0aCRITICAL%20forged%1b", buffered=True)
    client.post("/%0aCRITICAL%20forged%1b", headers={"Accept": "text/vnd.turbo-stream.html"})
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    for message in messages:
        assert "CRITICAL forged" in message
        assert message.isprintable()
