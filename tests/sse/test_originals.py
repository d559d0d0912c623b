"""What the answers call that recommend Flask-SSE and ``sse_bp``, with only their imports changed.

Each test names the place where the call is shown: an answer to "How to implement server push in
Flask framework?" (by its first words), the quick start of Flask-SSE's documentation, or the tests
of pyFlaskBootstrap4's ``sse_bp`` that the last answer refers to.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from flask import Flask, Response, abort, g, request

from flask_sockets2.sse import Message, PubSub, ServerSentEventsBlueprint, SSE_BluePrint, sse
from tests.brokers.servers import RedisServer
from tests.clients import http
from tests.event_client import EventClient
from tests.processes import Server
from tests.sse.reader import Reader
from tests.wire_client import TIMEOUT

pytestmark = pytest.mark.slow

StartServer = Callable[..., Server]


@pytest.fixture(autouse=True)
def begin_anew() -> Iterator[None]:
    PubSub.reinit()
    yield
    PubSub.reinit()


# -- "As a follow-up to @peter-hoffmann's answer, I've written a Flask extension" ----------------

FOLLOW_UP = """
    from flask import Flask
    from flask_sockets2.sse import sse


    app = Flask(__name__)
    app.config["REDIS_URL"] = "{url}"
    app.register_blueprint(sse, url_prefix='/stream')


    @app.route('/send')
    def send_message():
        sse.publish({{"message": "Hello!"}}, type='greeting')
        return "Message sent!"
"""


@pytest.mark.parametrize("how", ["gunicorn", "flask_run", "gthread", "gevent"])
def test_the_follow_up_sends_its_greeting(
    how: str, broker: RedisServer, request: pytest.FixtureRequest
) -> None:
    """Its program; the last two are what Flask-SSE's documentation says to run it with."""
    source = FOLLOW_UP.format(url=broker.url)
    if how in ("gthread", "gevent"):
        start: StartServer = request.getfixturevalue("gunicorn")
        server = start(source, worker=how, args=["--threads=8"])
    else:
        server = request.getfixturevalue(how)(source)
    with EventClient(server.port, "/stream").opened() as client:
        assert client.headers["content-type"].partition(";")[0] == "text/event-stream"
        assert http(server.url("/send"))[:2] == (200, "Message sent!")
        event = client.next()
        assert (event.type, event.json()) == ("greeting", {"message": "Hello!"})


def test_the_follow_up_needs_no_redis(gunicorn: StartServer) -> None:
    """The same without ``REDIS_URL``, as "Redis is overkill" wants it."""
    source = re.sub(r"\n *app\.config\[.*", "", FOLLOW_UP).replace("{{", "{").replace("}}", "}")
    server = gunicorn(source)
    with EventClient(server.port, "/stream").opened() as client:
        assert http(server.url("/send"))[0] == 200
        assert client.next().json() == {"message": "Hello!"}


def test_the_address_of_the_stream_is_that_of_its_endpoint() -> None:
    """``new EventSource("{{ url_for('sse.stream') }}")``, and the quick start's with a channel."""
    app = Flask(__name__)
    app.register_blueprint(sse, url_prefix="/stream")
    with app.test_request_context():
        assert app.url_for("sse.stream") == "/stream"
        assert app.url_for("sse.stream", channel="users.social") == "/stream?channel=users.social"


# -- Flask-SSE's documentation --------------------------------------------------------------------


def test_the_blueprint_has_one_rule_and_its_name() -> None:
    """Its tests: exactly one deferred function."""
    assert isinstance(sse, ServerSentEventsBlueprint)
    assert (sse.name, len(sse.deferred_functions)) == ("sse", 1)


def test_access_is_controlled_by_before_request() -> None:
    """ "Advanced": access control; channels are opened by the setting, and not by the function."""
    controlled = ServerSentEventsBlueprint("sse", __name__)
    controlled.add_url_rule(rule="", endpoint="stream", view_func=controlled.stream)

    @controlled.before_request
    def check_access() -> None:
        if request.args.get("channel") == "analytics" and not g.get("admin"):
            abort(403)

    app = Flask(__name__)
    app.config["SSE_OPEN_CHANNELS"] = True
    app.register_blueprint(controlled, url_prefix="/sse")
    client = app.test_client()
    assert client.get("/sse?channel=analytics").status_code == 403
    with Reader(app, "/sse?channel=users").opened() as reader, app.app_context():
        assert controlled.publish({"user": "alice"}, type="social", channel="users") == 1
        assert reader.next().type == "social"


def test_a_message_and_its_arguments() -> None:
    """ "API": ``Message``, ``publish``, ``messages``."""
    message = Message("foo", type="example", id=5, retry=500)
    assert repr(message) == "Message('foo', type='example', id=5, retry=500)"
    assert message.to_dict() == {"data": "foo", "type": "example", "id": 5, "retry": 500}
    assert str(message) == "event:example\ndata:foo\nid:5\nretry:500\n\n"
    app = Flask(__name__)
    app.register_blueprint(sse, url_prefix="/stream")
    with app.app_context():
        assert sse.publish("foo", type="example", id=5, retry=500, channel="sse") == 0
        assert iter(sse.messages(channel="sse"))
        with pytest.raises(KeyError):
            _ = sse.redis


# -- "Redis is overkill: use Server-Sent Events (SSE)" --------------------------------------------


def test_a_generator_in_a_plain_response_is_streamed_by_our_worker(gunicorn: StartServer) -> None:
    """Its server: ``Response(eventStream(), mimetype="text/event-stream")``, as it is."""
    server = gunicorn("""
        import time

        from flask import Flask, Response
        import flask_sockets2

        app = Flask(__name__)

        def get_message():
            '''this could be any function that blocks until data is ready'''
            time.sleep(0.1)
            s = time.ctime(time.time())
            return s

        @app.route('/stream')
        def stream():
            def eventStream():
                while True:
                    # wait for source data to be available, then push it
                    yield 'data: {}\\n\\n'.format(get_message())
            return Response(eventStream(), mimetype="text/event-stream")
    """)
    with EventClient(server.port, "/stream") as client:
        for _ in range(2):
            assert time.strptime(client.next(TIMEOUT).data)


# -- "As a committer of … I ran into the same need": sse_bp --------------------------------------


class Application:
    """Its "example server side code"."""

    def __init__(self) -> None:
        self.app = Flask(__name__)
        self.sseBluePrint = SSE_BluePrint(self.app, "sse", template_folder=None, debug=False)

    def getTimeEvent(self) -> str:
        """
        get the next time stamp
        """
        time.sleep(0.01)
        s = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        return s

    def eventFeed(self) -> Response:
        """
        create a Server Sent Event Feed
        """
        sse = self.sseBluePrint
        # stream from the given function
        return sse.streamFunc(self.getTimeEvent)


@pytest.fixture
def fb4() -> Application:
    return Application()


def test_the_event_feed_streams_from_a_function(fb4: Application) -> None:
    """Its "example server side code"."""
    fb4.app.add_url_rule("/eventfeed", "eventfeed", fb4.eventFeed)
    response = fb4.app.test_client().get("/eventfeed")
    assert response.content_type.partition(";")[0] == "text/event-stream"
    chunks: Any = iter(response.response)
    for _ in range(3):
        assert re.fullmatch(rb"data: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n\n", next(chunks))
    response.close()


def test_its_attributes(fb4: Application) -> None:
    """``SSE_BluePrint.__init__``, ``enableDebug``."""
    bluePrint = fb4.sseBluePrint
    assert (bluePrint.name, bluePrint.debug, bluePrint.withContext) == ("sse", False, False)
    assert (bluePrint.template_folder, bluePrint.app) == ("templates", fb4.app)
    assert bluePrint.blueprint is fb4.app.blueprints["sse"]
    bluePrint.enableDebug(True)
    assert bluePrint.debug is True
    SSE_BluePrint(Flask("other"), "sse", None, False, False, withScheduler=True, appWrap=None)


def test_generators_are_formatted(fb4: Application) -> None:
    """``generate``, ``generateSSE``; the bytes are those of its tests."""
    numbers = iter(range(9))
    gen = fb4.sseBluePrint.generate(lambda: next(numbers), limit=3)
    assert list(fb4.sseBluePrint.generateSSE(gen)) == [
        "data: 0\n\n",
        "data: 1\n\n",
        "data: 2\n\n",
    ]


def test_streams_of_generators(fb4: Application) -> None:
    """``streamSSE``, ``streamGen``, ``streamFunc``."""
    bluePrint = fb4.sseBluePrint
    views = {
        "/sse": lambda: bluePrint.streamSSE(f"data: {text}\n\n" for text in "ab"),
        "/gen": lambda: bluePrint.streamGen(iter("ab")),
        "/func": lambda: bluePrint.streamFunc(iter("abc").__next__, 2),
    }
    for path, view in views.items():
        fb4.app.add_url_rule(path, path, view)
    for path in views:
        assert fb4.app.test_client().get(path).text == "data: a\n\ndata: b\n\n"


def test_publish_and_subscribe(fb4: Application) -> None:
    """``publish``, ``subscribe`` and the route ``/sse/<channel>``; its tests: a GET is 200."""
    fb4.app.add_url_rule("/two", "two", lambda: fb4.sseBluePrint.subscribe("two", limit=2))
    response = fb4.app.test_client().get("/sse/sse")
    assert response.status_code == 200
    pubsub = fb4.sseBluePrint.publish("hello", channel="sse", debug=False)
    assert isinstance(pubsub, PubSub)
    assert pubsub.channel == "sse"
    chunks: Any = iter(response.response)
    assert [next(chunks) for _ in range(2)] == [b":\n\n", b"data: hello\n\n"]
    response.close()
    response = fb4.app.test_client().get("/two")
    for text in ("a", "b", "c"):
        fb4.sseBluePrint.publish(text, channel="two")
    assert response.text == ":\n\ndata: a\n\ndata: b\n\n"


def test_publish_needs_a_message(fb4: Application) -> None:
    """Its tests: the text of the TypeError."""
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'message'"):
        fb4.sseBluePrint.publish()  # type: ignore[call-arg]


def test_the_pubsub_by_itself() -> None:
    """``PubSub``: ``forChannel``, ``publish``, ``subscribe``, ``send``, ``receive``, ``listen``,
    ``unsubscribe``, ``reinit``; its tests: ``receiveCount``, ``pubSubByChannel``."""
    pubsub = PubSub("sse", maxsize=15, debug=False, dispatch=False)
    assert (pubsub.channel, pubsub.receiveCount, pubsub.dispatch) == ("sse", 0, False)
    for number in range(15):
        assert PubSub.publish("news", f"message {number}", debug=False).channel == "news"
    assert list(PubSub.pubSubByChannel) == ["news"]
    news = PubSub.forChannel("news")
    assert news is PubSub.pubSubByChannel["news"]
    assert news.receiveCount == 15
    listener = PubSub.subscribe("news", limit=-1, debug=False)
    assert next(listener) == "message 0"
    news.receive(None, "nobody's")
    news.receive(object(), "received")
    news.send("sent")
    news.unsubscribe()
    assert list(listener)[-2:] == ["received", "sent"]
    assert list(news.listen(limit=0)) == []
    PubSub.reinit()
    assert PubSub.pubSubByChannel == {}
