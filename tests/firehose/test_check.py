"""``flask firehose check URL`` against real hops, and against hops that do what others do."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import Result
from flask import Flask

from flask_sockets2.firehose import Firehose, probe
from flask_sockets2.firehose.cli import firehose_cli
from tests.processes import Server

StartServer = Callable[..., Server]

APP = """
from flask import Flask
from flask_sockets2.firehose import Firehose

app = Flask(__name__)
app.secret_key = "for the tests"
Firehose(app)


@app.get("/")
def page():
    raise AssertionError("a check runs no view")
"""

HTTP_1_1 = """\
location / {
    proxy_pass http://127.0.0.1:8000;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
}
"""
HTTP_1_0 = "location / {\n    proxy_pass http://127.0.0.1:8000;\n}\n"

SENT = b"HTTP/1.1 200 OK\r\nFirehose-Check: sent\r\nContent-Length: 0\r\n\r\n"


def make_app(secret_key: str | None = "for the tests") -> Flask:
    app = Flask("check")
    app.secret_key = secret_key
    Firehose(app)
    return app


def check(url: str, *args: str, app: Flask | None = None) -> Result:
    return (app or make_app()).test_cli_runner().invoke(firehose_cli, ["check", url, *args])


@contextlib.contextmanager
def hop(*answer: bytes) -> Iterator[str]:
    """A hop that answers with these bytes and ends the connection."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            client, _ = listener.accept()
            with client:
                client.recv(65536)
                client.sendall(b"".join(answer))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    thread.join(60)


@pytest.mark.parametrize("path", ["", "/nowhere?x=1"])
def test_directly_at_our_worker_it_passes(path: str, gunicorn: StartServer) -> None:
    result = check(gunicorn(APP).url(path))
    assert result.exit_code == 0, result.output
    assert "127.0.0.1: the hops pass a response 103 at once" in result.output
    assert "turn HTTP/2 on in the proxy" in result.output
    assert "name it by FIREHOSE_HOP_HEADER" in result.output


@pytest.mark.parametrize("name", ["haproxy", "caddy"])
def test_behind_proxies_of_today_it_passes(
    name: str, gunicorn: StartServer, request: pytest.FixtureRequest
) -> None:
    app = make_app()
    app.config["FIREHOSE_HOP_HEADER"] = "X-Early-Hints"
    url = request.getfixturevalue(name)(gunicorn(APP)).url("/")
    result = check(url, "--insecure", app=app)
    assert result.exit_code == 0, result.output
    assert "HTTP/2" not in result.output  # it is offered
    assert "sets the header X-Early-Hints" in result.output
    result = check(url)
    assert result.exit_code == 2
    assert "CERTIFICATE_VERIFY_FAILED" in result.output


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HTTP_1_1, "takes it for the answer, as nginx before 1.29"),
        (HTTP_1_0, "proxy_http_version 1.1"),
    ],
)
def test_behind_nginx_it_does_not(
    text: str, words: str, gunicorn: StartServer, secure_nginx: Callable[..., Server]
) -> None:
    result = check(secure_nginx(gunicorn(APP), text).url("/"), "--insecure")
    assert result.exit_code == 1, result.output
    # A newer one swallows it, and says nothing else.
    assert words in result.output or "a hop swallows" in result.output


def test_a_server_without_early_hints_is_named(flask_run: StartServer) -> None:
    result = check(flask_run(APP).url("/"))
    assert result.exit_code == 1
    assert "has no wsgi.early_hints" in result.output or "HTTP/1.0" in result.output


def test_another_secret_key_is_another_application(gunicorn: StartServer) -> None:
    result = check(gunicorn(APP.replace("AssertionError", "KeyError")).url("/x"), app=make_app("y"))
    assert result.exit_code == 2
    assert "status 404" in result.output
    assert "this SECRET_KEY" in result.output


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        ([SENT], 1, "swallows the response 103"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", SENT], 1, "swallows"),
        ([b"HTTP/1.1 103 Early Hints\r\n\r\n", SENT], 1, "holds the response 103 back"),
        ([b"HTTP/1.1 502 Bad Gateway\r\n\r\n"], 1, "it answers 502"),
        ([b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n"], 2, "status 302"),
        ([b"HTTP/1.1 200 OK\r\nFirehose-Check: none\r\n\r\n"], 1, "no wsgi.early_hints"),
        ([b"HTTP/1.1 200 OK\r\nFirehose-Check: http/1.0\r\n\r\n"], 1, "speaks HTTP/1.0"),
        ([b"HTTP/1.1 103 Early Hints\r\n\r\n"], 1, "the connection ended without an answer"),
        ([b"SSH-2.0-OpenSSH\r\n\r\n"], 2, "the answer is no HTTP"),
        ([b""], 2, "the connection ended"),
        ([b"x" * 70000], 2, "has no end"),
    ],
)
def test_every_hop_has_its_finding(answer: list[bytes], status: int, words: str) -> None:
    with hop(*answer) as url:
        result = check(url)
    assert words in result.output
    assert result.exit_code == status


def test_a_hop_that_is_silent_is_waited_for_in_vain() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        result = check(f"http://127.0.0.1:{listener.getsockname()[1]}/", "--timeout", "1")
    assert result.exit_code == 1
    assert "fails over a response 103" in result.output


def test_nobody_listens(unused_port: int) -> None:
    result = check(f"http://127.0.0.1:{unused_port}/")
    assert result.exit_code == 2
    assert "cannot reach 127.0.0.1" in result.output


@pytest.mark.parametrize(
    "url", ["example.com", "ftp://x/", "http://", "http://x:y/", "http://x/ a", "http://x/\na"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    result = check(url)
    assert result.exit_code == 2
    assert "Usage" in result.output


def test_without_a_secret_key_nothing_can_be_signed() -> None:
    result = check("http://127.0.0.1/", app=make_app(None))
    assert result.exit_code == 2
    assert "SECRET_KEY" in result.output


def asked_with(token: str | None, **environ: Any) -> Any:
    headers = {} if token is None else {probe.HEADER: token}
    return make_app().test_client().get("/", headers=headers, environ_overrides=environ)


def test_only_who_has_the_key_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(probe.time, "sleep", lambda seconds: None)
    right = probe.token(make_app())
    for wrong in (None, "", "x", right + "x", probe.token(make_app("another"))):
        answer = asked_with(wrong, **{"wsgi.early_hints": sent.append})
        assert (answer.status_code, sent) == (404, [])
    answer = asked_with(right, **{"wsgi.early_hints": sent.append})
    assert answer.headers[probe.HEADER] == "sent"
    assert len(sent) == 1
    assert asked_with(right).headers[probe.HEADER] == "none"
    monkeypatch.setattr(probe, "_MAX_AGE", -1)
    assert asked_with(right).status_code == 404
