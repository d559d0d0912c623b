"""What the application's own functions answer: who may have something, and who somebody is."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial, wraps
from http.client import HTTPConnection
from typing import Any

import pytest
import sqlalchemy
from flask import Flask, Response, abort, make_response, redirect, session
from websockets.exceptions import ConnectionClosed
from werkzeug.exceptions import Forbidden, HTTPException, Unauthorized
from werkzeug.local import LocalProxy
from werkzeug.wrappers import Response as WerkzeugResponse

from flask_sockets2 import Sockets, WebSocketRejected
from flask_sockets2.application import answers
from flask_sockets2.application.answers import WrongAnswer, permits
from flask_sockets2.application.event_stream import stream_response
from flask_sockets2.application.state import state_of
from flask_sockets2.sse import ServerSentEventsBlueprint
from flask_sockets2.turbo import Turbo
from flask_sockets2.turbo.jobs import Job
from flask_sockets2.turbo.stream_names import StreamSigner
from tests.clients import http, websocket
from tests.processes import Server
from tests.wire_client import TIMEOUT, WireClient
from tests.wire_client import request as upgrade

Answer = Callable[..., Any]
EVENTS = {"Accept": "text/event-stream"}


class Yes:
    """Something that is true, as the booleans of numpy and models of a database are."""

    def __bool__(self) -> bool:
        return True

    def method(self) -> bool:
        return False


async def awaited(answer: Any) -> Any:
    return answer


# -- the ways in ---------------------------------------------------------------------------------


class Site:
    """An application with every function whose answer counts, each asked at an address of its own.

    :ivar answer: what the function that is asked answers with.
    """

    def __init__(self) -> None:
        self.app = Flask(__name__)
        self.app.secret_key = "for the tests"
        self.turbo = Turbo(self.app)
        self.sockets = Sockets(self.app)
        self.sockets.route("/echo")(lambda ws: ws.send("here"))
        self.app.add_url_rule("/events", "events", lambda: stream_response(self.app, [("a", None)]))
        self.sse = ServerSentEventsBlueprint("sse", __name__)
        self.sse.add_url_rule("", endpoint="stream", view_func=self.sse.stream)
        self.app.register_blueprint(self.sse, url_prefix="/stream")

    @property
    def streams(self) -> str:
        return f"/turbo-stream?s={StreamSigner(self.app).sign('turbo:stream:room')}"

    def websocket(self, path: str) -> Response | None:
        """Ask for a WebSocket; what refuses it, None where nothing does."""
        try:
            with self.sockets.test_client(self.app).connect(path):
                return None
        except WebSocketRejected as refused:
            return refused.response

    def events(self, path: str) -> Response | None:
        """Ask for an event stream."""
        response = self.app.test_client().get(path, headers=EVENTS)
        response.close()
        return None if response.status_code == 200 else response


def turbo_authorizes_a_websocket(site: Site, answer: Answer) -> Response | None:
    site.turbo.authorize(answer)
    return site.websocket(site.streams)


def turbo_authorizes_events(site: Site, answer: Answer) -> Response | None:
    site.turbo.authorize(answer)
    return site.events(site.streams)


def sse_authorizes(site: Site, answer: Answer) -> Response | None:
    site.sse.authorize(answer)
    return site.events("/stream?channel=news")


def sse_authorizes_a_signed_address(site: Site, answer: Answer) -> Response | None:
    with site.app.test_request_context():
        url = site.sse.url("news")
    site.sse.authorize(answer)
    return site.events(url)


def sockets_ask_who_it_is(site: Site, answer: Answer) -> Response | None:
    site.sockets.user_id(answer)
    return site.websocket("/echo")


def streams_ask_who_it_is(site: Site, answer: Answer) -> Response | None:
    site.sockets.user_id(answer)
    return site.events("/events")


def turbo_asks_who_it_is(site: Site, answer: Answer) -> Response | None:
    site.turbo.user_id(answer)
    return site.websocket("/turbo-stream?s=turbo:all")


def turbo_asks_for_events_who_it_is(site: Site, answer: Answer) -> Response | None:
    site.turbo.user_id(answer)
    return site.events("/turbo-stream?s=turbo:all")


Ask = Callable[[Site, Answer], Response | None]
YES_OR_NO: list[Ask] = [
    turbo_authorizes_a_websocket,
    turbo_authorizes_events,
    sse_authorizes,
    sse_authorizes_a_signed_address,
]
WHO: list[Ask] = [
    sockets_ask_who_it_is,
    streams_ask_who_it_is,
    turbo_asks_who_it_is,
    turbo_asks_for_events_who_it_is,
]


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    assert site.app.extensions["flask_sockets2"].channels.here() == {}
    assert not state_of(site.app).connections
    assert not state_of(site.app).streams


# -- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", YES_OR_NO)
@pytest.mark.parametrize("answer", [True, LocalProxy(lambda: True)])
def test_true_is_yes(ask: Ask, answer: Any, site: Site) -> None:
    assert ask(site, lambda *args: answer) is None


@pytest.mark.parametrize("ask", YES_OR_NO)
@pytest.mark.parametrize("answer", [False, None, LocalProxy(lambda: False)])
def test_false_and_none_are_no(
    ask: Ask, answer: Any, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    response = ask(site, lambda *args: answer)
    assert response is not None
    assert response.status_code == 403
    assert [vars(record)["reason"] for record in caplog.records] == ["not_authorized"]


REFUSALS: list[tuple[Answer, int]] = [
    (lambda: ("forbidden", 403), 403),
    (lambda: ("forbidden", "403 Forbidden", {"X-Why": "banned"}), 403),
    (lambda: ({"error": "log in"}, 401), 401),
    (lambda: ("", 503, [("Retry-After", "5")]), 503),
    (lambda: Response("no", 418), 418),
    (lambda: WerkzeugResponse("no", 403), 403),
    (lambda: make_response("no", 404), 404),
    (lambda: redirect("/login"), 302),
    (lambda: redirect("/login", 303), 303),
    (Forbidden, 403),
    (lambda: Unauthorized(response=Response("log in", 401)), 401),
    (lambda: LocalProxy(lambda: Response("no", 403)), 403),
    (lambda: abort(401), 401),
    (lambda: abort(Response("no", 402)), 402),
]


@pytest.mark.parametrize("ask", [*YES_OR_NO, *WHO])
@pytest.mark.parametrize(("answer", "status"), REFUSALS)
def test_a_response_that_refuses_is_sent(
    ask: Ask, answer: Answer, status: int, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    response = ask(site, lambda *args: answer())
    assert response is not None
    assert response.status_code == status
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    if status == 302:
        assert response.headers["Location"] == "/login"
    if status == 503:
        assert response.headers["Retry-After"] == "5"


def test_what_a_response_has_with_it_is_sent_too_and_error_handlers_leave_it(site: Site) -> None:
    site.app.register_error_handler(HTTPException, lambda exc: ("an error page", 200))

    def answer(channel: str) -> Response:
        response = make_response("banned", 403)
        response.set_cookie("seen", "1")
        return response

    response = sse_authorizes(site, answer)
    assert response is not None
    assert (response.status_code, response.text) == (403, "banned")
    assert "seen=1" in response.headers["Set-Cookie"]


def login_required(f: Answer) -> Answer:
    """What Flask-Login's decorator does, before a function that would say yes."""

    @wraps(f)
    def decorated(*args: Any) -> Any:
        return f(*args) if "user" in session else redirect("/login")

    return decorated


@pytest.mark.parametrize("ask", YES_OR_NO)
def test_a_decorator_that_sends_strangers_to_the_login_does_so(ask: Ask, site: Site) -> None:
    response = ask(site, login_required(lambda *args: True))
    assert response is not None
    assert response.status_code == 302


def test_an_exception_of_werkzeug_that_is_returned_gets_its_error_handler(site: Site) -> None:
    site.app.register_error_handler(403, lambda exc: ("not for you, sorry", 403))
    response = sse_authorizes(site, lambda channel: Forbidden())
    assert response is not None
    assert response.text == "not for you, sorry"


def generator() -> Iterator[bool]:
    yield True


async def async_generator() -> Any:
    yield True


WRONG: list[Answer] = [
    lambda: "False",
    lambda: "",
    lambda: b"no",
    lambda: 1,
    lambda: 0,
    lambda: 1.0,
    list,
    lambda: [True],
    dict,
    lambda: {"error": "no"},
    tuple,
    lambda: (True, "reason"),
    lambda: (False, "reason"),
    lambda: (None, 403),
    lambda: (False, 403),
    lambda: ("forbidden", None),
    lambda: ("forbidden", 600),
    lambda: ("forbidden", 403, {}, "more"),
    lambda: ("fine", 200),
    lambda: ("ann", 5),
    lambda: ("created", 201),
    lambda: Response("fine"),
    lambda: Response(status=101),
    lambda: HTTPException(response=Response("fine")),
    lambda: LocalProxy(lambda: "False"),
    lambda: sqlalchemy.column("owner") == 5,
    lambda: sqlalchemy.true(),
    generator,
    async_generator,
    lambda: awaited(False),
    lambda: awaited(True),
    Yes,
    lambda: Yes().method,
    lambda: Ellipsis,
    lambda: NotImplemented,
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("ask", YES_OR_NO)
@pytest.mark.parametrize("answer", WRONG)
def test_anything_else_is_a_type_error_and_a_refusal(
    ask: Ask, answer: Answer, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    def may_have(*args: Any) -> Any:
        return answer()

    response = ask(site, may_have)
    assert response is not None
    assert response.status_code == 500
    (record,) = caplog.records
    assert record.exc_info is not None
    error = record.exc_info[1]
    assert isinstance(error, WrongAnswer)
    assert isinstance(error, TypeError)
    by = "@sse.authorize" if "sse" in ask.__name__ else "@turbo.authorize"
    assert f"may_have' of {by} " in str(error)
    assert any(
        remedy in str(error) for remedy in ("return True", "must return", "async def", "use return")
    )


def test_an_answer_is_named_and_not_shown(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    sse_authorizes(site, partial(lambda secret, channel: [secret], "token"))
    assert "returned a list" in caplog.text
    sse_authorizes(site, lambda channel: Yes())
    assert "returned a tests.test_answers.Yes" in caplog.text
    errors = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert not [error for error in errors if "token" in error]


@pytest.mark.parametrize(
    ("answer", "kind"), [(object(), "an object"), (1, "an int"), (1.5, "a float"), ("no", "a str")]
)
def test_the_error_reads_as_a_sentence(answer: object, kind: str) -> None:
    def may() -> object:
        return answer

    may.__qualname__ = "may"
    with (
        Flask(__name__).test_request_context() as context,
        pytest.raises(
            WrongAnswer, match=rf"^the function 'may' of @turbo.authorize returned {kind};"
        ),
    ):
        permits(context.app, may, by="@turbo.authorize")


def test_it_reaches_who_tests_the_application(site: Site) -> None:
    site.app.testing = True
    with pytest.raises(TypeError, match="returned a str"):
        sse_authorizes(site, lambda channel: "False")
    with pytest.raises(TypeError, match="returned a str"):
        turbo_authorizes_a_websocket(site, lambda *parts: "False")


# -- who somebody is -----------------------------------------------------------------------------


@pytest.mark.parametrize("ask", WHO)
@pytest.mark.parametrize("answer", [None, 5, "ann", LocalProxy(lambda: 5)])
def test_an_id_or_none_says_who_somebody_is(ask: Ask, answer: Any, site: Site) -> None:
    assert ask(site, lambda: answer) is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("ask", WHO)
@pytest.mark.parametrize(
    "answer",
    [
        lambda: True,
        lambda: False,
        lambda: "",
        lambda: 1.0,
        lambda: ("ann", 5),
        lambda: Response("ann"),
        lambda: awaited("ann"),
        generator,
        Yes,
        lambda: LocalProxy(Yes),
    ],
)
def test_who_is_none_of_these_gets_no_connection(
    ask: Ask, answer: Answer, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    def who() -> Any:
        return answer()

    response = ask(site, who)
    assert response is not None
    assert response.status_code == 500
    (record,) = caplog.records
    assert record.exc_info is not None
    by = "@turbo.user_id" if "turbo" in ask.__name__ else "@sockets.user_id"
    assert f"who' of {by} " in str(record.exc_info[1])


def test_a_page_says_so_to_who_has_written_the_function(site: Site) -> None:
    def view() -> str:
        return site.turbo.turbo()

    site.app.add_url_rule("/page", view_func=view)
    site.app.testing = True
    for answer, said in ((Yes, "use an id of it"), (lambda: awaited(5), "async def")):
        site.turbo.user_id(answer)
        with pytest.raises(TypeError, match=said):
            site.app.test_client().get("/page")
    site.turbo.user_id(lambda: ("forbidden", 403))
    assert "turbo-stream-from" in site.app.test_client().get("/page").text


# -- names that follow after the accept ----------------------------------------------------------


@contextmanager
def following(site: Site) -> Iterator[Any]:
    """A WebSocket that was accepted, and whose further name comes now."""
    client = site.sockets.test_client(site.app)
    with client.connect("/turbo-stream?s=turbo:all&more=1") as session:
        name = StreamSigner(site.app).sign("turbo:stream:room")
        session.send(json.dumps({"streams": [[name, ""]]}))
        yield session


@pytest.mark.parametrize(
    ("answer", "code", "reason"),
    [
        (lambda: False, 4403, ""),
        (lambda: None, 4403, ""),
        (lambda: ("forbidden", 403), 4403, ""),
        (lambda: redirect("/login"), 4403, ""),
        (lambda: ("log in", 401), 4401, ""),
        (Unauthorized, 4401, ""),
        (lambda: abort(Response("gone", 410)), 4410, ""),
        (lambda: ("later", 429), 1008, "429 Too Many Requests"),
        (lambda: ("broken", 503), 1011, ""),
        (lambda: "False", 1011, ""),
        (lambda: ("fine", 200), 1011, ""),
        (lambda: awaited(True), 1011, ""),
    ],
)
def test_after_the_accept_the_close_code_refuses(
    answer: Answer, code: int, reason: str, site: Site
) -> None:
    site.app.config["PROPAGATE_EXCEPTIONS"] = False
    site.turbo.authorize(lambda *parts: answer())
    with following(site) as session:
        assert session.receive(TIMEOUT) is None
        assert (session.close_code, session.close_reason) == (code, reason)


# -- async def -----------------------------------------------------------------------------------


class Checker:
    async def may_have(self, *args: str) -> bool:
        return await awaited("news" in args or "room" in args)


@pytest.mark.parametrize("ask", YES_OR_NO)
def test_an_async_function_is_asked(ask: Ask, site: Site) -> None:
    async def no(*args: str) -> Any:
        return await awaited(False)

    async def refuse(*args: str) -> Any:
        return await awaited(("log in", 401))

    assert ask(site, Checker().may_have) is None
    assert ask(site, partial(Checker().may_have)) is None
    for function, status in ((no, 403), (refuse, 401)):
        response = ask(site, function)
        assert response is not None
        assert response.status_code == status


@pytest.mark.parametrize("ask", WHO)
def test_an_async_function_says_who_somebody_is(ask: Ask, site: Site) -> None:
    seen: list[str | None] = []
    check = state_of(site.app).admission.check

    def note(guest: Any) -> None:
        seen.append(guest.user)
        check(guest)

    state_of(site.app).admission.check = note  # type: ignore[method-assign]  # looks on
    assert ask(site, partial(awaited, 5)) is None
    assert seen == ["5"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("ask", [*YES_OR_NO, *WHO])
def test_without_flask_async_it_is_refused(
    ask: Ask, site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "asgiref.sync", None)

    async def function(*args: str) -> Any:
        return True

    response = ask(site, function)
    assert response is not None
    assert response.status_code == 500
    assert "Install Flask with the 'async' extra" in caplog.text


@pytest.mark.filterwarnings("error")
def test_an_async_job_runs_and_what_runs_nothing_is_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app, ran = Flask(__name__), []

    async def job() -> None:
        ran.append(await awaited(threading.current_thread().name))

    Job(1, job, "job").run(app)
    assert len(ran) == 1
    for wrong, said in ((lambda: awaited(1), "coroutine"), (generator, "generator")):
        caplog.clear()
        Job(1, wrong, "wrong").run(app)
        (record,) = caplog.records
        assert record.exc_info is not None
        assert said in str(record.exc_info[1])


# -- over real servers ---------------------------------------------------------------------------

SITE = """
    import asyncio

    from flask import Flask, redirect, request
    from flask_sockets2 import Sockets
    from flask_sockets2.sse import sse
    from flask_sockets2.turbo import Turbo
    from flask_sockets2.turbo.stream_names import StreamSigner

    app = Flask(__name__)
    app.secret_key = "for the tests"
    turbo, sockets = Turbo(app), Sockets(app)

    async def slowly(answer):
        await asyncio.sleep(0.02)
        return answer

    ANSWERS = {
        "yes": lambda: True,
        "no": lambda: False,
        "tuple": lambda: ("forbidden", 403),
        "redirect": lambda: redirect("/login"),
        "text": lambda: "False",
        "coroutine": lambda: slowly(False),
        "generator": lambda: (each for each in [False]),
    }

    def answer():
        return ANSWERS[request.args["answer"]]()

    @turbo.authorize
    def may_have(*parts):
        return answer()

    @sse.authorize
    async def may_listen(channel):
        if "slowly" in request.args:
            return await slowly(channel == request.args["slowly"])
        return answer()

    @sockets.user_id
    def user_id():
        return None if request.args.get("who") is None else answer()

    sockets.route("/echo")(lambda ws: ws.send("here"))
    app.register_blueprint(sse, url_prefix="/stream")

    @app.get("/name")
    def name():
        return StreamSigner(app).sign("turbo:stream:room")
"""

ANSWERED = {
    "yes": 200,
    "no": 403,
    "tuple": 403,
    "redirect": 302,
    "text": 500,
    "coroutine": 500,
    "generator": 500,
}


def status_of_events(server: Server, path: str) -> int:
    """Ask for an event stream, and leave as soon as there is an answer."""
    client = HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)
    try:
        client.request("GET", path, headers=EVENTS)
        return client.getresponse().status
    finally:
        client.close()


def status_of_websocket(server: Server, path: str) -> int:
    with WireClient(server.port) as client:
        client.send(upgrade(path))
        return client.response().status


@pytest.mark.parametrize("how", ["gunicorn", "flask_run"])
def test_a_refusal_is_sent_over_a_real_connection(how: str, request: pytest.FixtureRequest) -> None:
    start: Callable[..., Server] = request.getfixturevalue(how)
    server = start(SITE)
    name = http(server.url("/name"))[1]
    for answer, status in ANSWERED.items():
        asked = f"/turbo-stream?s={name}&answer={answer}"
        assert status_of_events(server, f"/stream?channel=a&answer={answer}") == status
        assert status_of_events(server, asked) == status
        assert status_of_websocket(server, asked) == (101 if status == 200 else status)
        who = {"yes": 500, "no": 500, "text": 101}.get(answer, status)  # "False" is an id as any
        assert status_of_websocket(server, f"/echo?who=&answer={answer}") == who
    assert "never awaited" not in server.output


@pytest.mark.parametrize(("answer", "code"), [("redirect", 4403), ("tuple", 4403), ("text", 1011)])
def test_after_the_accept_a_real_connection_is_closed(
    answer: str, code: int, gunicorn: Callable[..., Server]
) -> None:
    server = gunicorn(SITE)
    name = http(server.url("/name"))[1]
    url = server.ws_url(f"/turbo-stream?s=turbo:all&more=1&answer={answer}")
    with websocket(url) as client:
        client.send(json.dumps({"streams": [[name, ""]]}))
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=TIMEOUT)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == code


@pytest.mark.parametrize("how", ["gunicorn", "flask_run"])
def test_async_functions_of_many_at_once_are_each_answered(
    how: str, request: pytest.FixtureRequest
) -> None:
    """Issue 5881 of Flask: under gevent a second event loop in a thread is an error."""
    start: Callable[..., Server] = request.getfixturevalue(how)
    server = start(SITE)
    paths = [f"/stream?channel={each}&slowly=a" for each in "ab" * 10]
    with ThreadPoolExecutor(len(paths)) as executor:
        statuses = list(executor.map(partial(status_of_events, server), paths))
    assert statuses == [200, 403] * 10


def test_an_async_function_that_does_not_end_keeps_no_one_waiting_for_ever(
    monkeypatch: pytest.MonkeyPatch, site: Site
) -> None:
    monkeypatch.setattr(answers, "on_gevent", lambda: True)
    monkeypatch.setattr(answers, "_TURN", 0.05)
    begun, end = threading.Event(), threading.Event()

    async def may_have(channel: str) -> bool:
        begun.set()
        end.wait(TIMEOUT)
        return True

    found: list[Response | None] = []
    thread = threading.Thread(target=lambda: found.append(sse_authorizes(site, may_have)))
    site.events("/stream")  # Flask prepares the application for its first request alone
    thread.start()
    assert begun.wait(TIMEOUT)
    response = site.events("/stream?channel=news")
    end.set()
    thread.join(TIMEOUT)
    assert response is not None
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert found == [None]
    assert site.events("/stream?channel=news") is None
