"""Programs that use Flask-SSE, with the same Redis: the real flask-sse."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import flask_sse
import pytest
from flask import Flask

from flask_sockets2 import BrokerError
from flask_sockets2.application.state import state_of
from flask_sockets2.sse import Message, sse
from flask_sockets2.sse.interop import Interop
from flask_sockets2.sse.settings import Site
from tests.brokers.servers import RedisServer
from tests.clients import http
from tests.processes import Servers, wait_until
from tests.sse.reader import Reader
from tests.sse.site import on_each_worker
from tests.wire_client import TIMEOUT


@pytest.fixture
def theirs(broker: RedisServer) -> Flask:
    """An application with Flask-SSE itself."""
    app = Flask(__name__)
    app.config["SSE_REDIS_URL"] = broker.url
    app.register_blueprint(flask_sse.sse, url_prefix="/stream")
    return app


@pytest.fixture
def ours(broker: RedisServer) -> Iterator[Flask]:
    app = Flask(__name__)
    app.config.update(SSE_REDIS_URL=broker.url, SSE_OPEN_CHANNELS=True)
    app.register_blueprint(sse, url_prefix="/stream")
    yield app
    interop = Site.of(app).interop
    if interop is not None:
        interop.close()
    state_of(app).channels.close()


def they_publish(app: Flask, *args: Any, **kwargs: Any) -> int:
    with app.app_context():
        count: int = flask_sse.sse.publish(*args, **kwargs)
    return count


def wait_until_heard(broker: RedisServer, *names: str) -> None:
    """Wait until somebody listens to what Flask-SSE publishes."""
    with broker.client() as client:
        wait_until(
            lambda: all(number == 1 for _, number in client.pubsub_numsub(*names)),
            f"one to listen to {names}",
        )


def test_their_publishers_reach_our_streams(
    ours: Flask, theirs: Flask, broker: RedisServer
) -> None:
    with Reader(ours).opened() as reader:
        wait_until_heard(broker, "sse")
        assert they_publish(theirs, {"message": "Hello!"}, type="greeting", id=5, retry=9) == 1
        event = reader.next()
        assert (event.type, event.json(), event.last_id) == ("greeting", {"message": "Hello!"}, "5")
        assert reader.retry == 9
        they_publish(theirs, "two\nlines")
        assert reader.data(1) == ["two\nlines"]


def test_our_publishers_reach_their_subscribers_and_our_streams_once(
    ours: Flask, theirs: Flask, broker: RedisServer
) -> None:
    found: list[Any] = []

    def listen() -> None:
        with theirs.app_context():
            for message in flask_sse.sse.messages("news"):
                found.append(message)
                if message.data == "last":
                    return

    thread = threading.Thread(target=listen)
    thread.start()
    wait_until_heard(broker, "news")
    with Reader(ours, "/stream?channel=news").opened() as reader, ours.app_context():
        with broker.client() as client:
            wait_until(lambda: client.pubsub_numsub("news")[0][1] == 2, "our own to listen")
        # Theirs and our stream; that we listen ourselves does not count.
        assert sse.publish({"a": [1]}, type="t", id=7, channel="news") == 2
        sse.publish("last", channel="news")
        assert reader.data(2) == ['{"a": [1]}', "last"]
        thread.join(TIMEOUT)
        they_publish(theirs, "after", channel="news")
        assert reader.data(1) == ["after"]
    assert found == [flask_sse.Message({"a": [1]}, "t", 7), flask_sse.Message("last")]


def test_messages_brings_theirs_as_well(ours: Flask, theirs: Flask, broker: RedisServer) -> None:
    found: list[Message] = []

    def listen() -> None:
        with ours.app_context():
            found.append(next(sse.messages()))

    thread = threading.Thread(target=listen)
    thread.start()
    wait_until_heard(broker, "sse")
    they_publish(theirs, "x", id=1)
    thread.join(TIMEOUT)
    assert found == [Message("x", id=1)]


def test_what_is_no_event_of_theirs_is_left_out(
    ours: Flask, theirs: Flask, broker: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with Reader(ours).opened() as reader, broker.client() as client:
        wait_until_heard(broker, "sse")
        deep = b"[" * 100_000
        for payload in (b"no JSON", b"\xff", b'{"data": "a", "type": "b\\nc"}', deep, b'{"x": 1}'):
            client.publish("sse", payload)
        assert reader.data(1) == ['{"x": 1}']
    assert caplog.text.count("another program published to 'sse' is no event") == 4


def test_what_anybody_says_where_workers_agree_does_no_harm(
    ours: Flask, theirs: Flask, broker: RedisServer
) -> None:
    with Reader(ours).opened() as reader, broker.client() as client:
        wait_until_heard(broker, "sse")
        prefix = state_of(ours).channels.broker.options.prefix
        deep = "[" * 100_000
        strange = '[5, null, "", "\\ud800", "wanted"]'
        for payload in ("no JSON", "5", '{"a": 1}', deep, strange):
            client.publish(f"{prefix}:sse:wanted", payload)
        wait_until_heard(broker, "wanted")
        they_publish(theirs, "x")
        assert reader.data(1) == ["x"]


def test_what_the_broker_says_to_its_workers_is_no_event(ours: Flask, broker: RedisServer) -> None:
    ours.config["SSE_OPEN_CHANNELS"] = True
    channels = state_of(ours).channels
    prefix = channels.broker.options.prefix
    secret = f"{prefix}:0:{{secret}}"
    with Reader(ours, f"/stream?channel={secret}&channel=sse").opened(), broker.client() as client:
        wait_until_heard(broker, "sse")
        assert client.pubsub_numsub(secret) == [(secret.encode(), 0)]


def test_an_event_does_not_go_where_the_broker_speaks(ours: Flask, broker: RedisServer) -> None:
    prefix = state_of(ours).channels.broker.options.prefix
    with broker.client() as client, client.pubsub() as pubsub, ours.app_context():
        pubsub.subscribe(f"{prefix}:0:{{turbo:all}}")
        assert pubsub.get_message(timeout=TIMEOUT)["type"] == "subscribe"
        assert sse.publish("x", channel=f"{prefix}:0:{{turbo:all}}") == 0
        state_of(ours).publisher.publish("turbo:all", "y")
        assert pubsub.get_message(timeout=TIMEOUT)["data"].endswith(b"y")


def test_the_channels_wanted_first_make_room_for_new_ones(
    ours: Flask, broker: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_sockets2.sse.interop._MOST", 3)
    with Reader(ours, "/stream?channel=a&channel=b").opened():
        wait_until_heard(broker, "a", "b")
    with Reader(ours, "/stream?channel=c&channel=d").opened(), broker.client() as client:
        wait_until_heard(broker, "c", "d")
        wait_until(lambda: client.pubsub_numsub("a") == [(b"a", 0)], "room")


def test_threads_that_need_it_first_at_once_have_the_same(
    ours: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Barrier(4)
    make = Interop.__init__

    def slowly(*args: Any) -> None:
        time.sleep(0.05)  # a switch of threads in the middle
        make(*args)

    monkeypatch.setattr(Interop, "__init__", slowly)
    found: list[Any] = []

    def need() -> None:
        begun.wait(TIMEOUT)
        found.append(Site.of(ours).interop)

    threads = [threading.Thread(target=need) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert len(found) == 4
    assert len(set(map(id, found))) == 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # of threads
def test_a_child_of_a_fork_has_one_of_its_own(ours: Flask) -> None:
    of_the_parent = Site.of(ours).interop
    child = os.fork()
    if not child:
        try:
            found = Site.of(ours).interop
            os._exit(found is None or found is of_the_parent)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert Site.of(ours).interop is of_the_parent


def test_many_at_once_share_a_few_connections(ours: Flask, broker: RedisServer) -> None:
    interop = Site.of(ours).interop
    assert interop is not None
    threads = [threading.Thread(target=interop.want, args=([f"c{n}"],)) for n in range(60)]
    with broker.client() as client:
        before = len(client.client_list())
        broker.pause()
        for thread in threads:
            thread.start()
        broker.resume()
        for thread in threads:
            thread.join(TIMEOUT)
        # Eight of its own; those of the broker are not meant.
        assert 1 <= len(client.client_list()) - before <= 8 + 4


def test_a_redis_that_is_away_costs_the_count_and_not_the_event(
    ours: Flask, broker: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    app = Flask(__name__)
    app.config.update(SOCKETS_BROKER_URL="memory://", SSE_REDIS_URL="redis://127.0.0.1:1")
    app.register_blueprint(sse, url_prefix="/stream")
    with Reader(app).opened() as reader, app.app_context():
        assert sse.publish("x") == 1
        assert reader.data(1) == ["x"]
    assert "an event was published, but not to all" in caplog.text
    interop = Site.of(app).interop
    assert interop is not None
    interop.close()


def test_a_redis_that_is_away_is_a_line_in_the_log(
    ours: Flask, broker: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with Reader(ours).opened():
        wait_until_heard(broker, "sse")
        broker.kill()
        line = "what others publish is not heard just now: "
        wait_until(lambda: line in caplog.text, "a line in the log")


def test_nothing_of_it_happens_unless_redis_is_theirs_too(broker: RedisServer) -> None:
    app = Flask(__name__)
    app.config["SOCKETS_BROKER_URL"] = broker.url
    app.register_blueprint(sse, url_prefix="/stream")
    with Reader(app).opened(), app.app_context():
        assert Site.of(app).interop is None
        with broker.client() as client:
            assert client.pubsub_channels("*sse:wanted") == []
        app.config["SSE_INTEROP"] = True
        assert Site.of(app).interop is not None
        app.config.update(SSE_INTEROP=False, SSE_REDIS_URL=broker.url)
        assert Site.of(app).interop is None
    state_of(app).channels.close()


def test_asking_for_it_without_redis_is_an_error() -> None:
    app = Flask(__name__)
    app.register_blueprint(sse, url_prefix="/stream")
    app.config["SSE_INTEROP"] = True  # too late for an error at the start
    with app.app_context(), pytest.raises(ValueError, match="SSE_REDIS_URL"):
        sse.publish("x")


# -- several workers ---------------------------------------------------------------------------

SOURCE = """
import os

from flask import Flask
from flask_sockets2.sse import sse

app = Flask(__name__)
app.config.from_prefixed_env()
app.register_blueprint(sse, url_prefix="/stream")


@app.get("/pid")
def pid():
    return str(os.getpid())


@app.after_request
def tell_process(response):
    response.headers["X-Process"] = str(os.getpid())
    return response
"""


def test_of_several_workers_one_listens_and_another_takes_over(
    server_factory: Servers, broker: RedisServer, theirs: Flask
) -> None:
    server = server_factory.gunicorn(
        SOURCE, args=["-w", "3"], environ={"FLASK_SSE_REDIS_URL": broker.url}
    )
    clients = on_each_worker(server, 3)
    wait_until_heard(broker, "sse")
    for number in range(20):
        they_publish(theirs, number)
    for client in clients.values():
        assert [client.next().json() for _ in range(20)] == list(range(20))
    with broker.client() as redis:
        [holder] = redis.keys("*sse:interop*")
        listening = int(redis.get(holder).split(b"-")[0])
    os.kill(listening, signal.SIGKILL)
    clients.pop(listening).sock.close()
    with broker.client() as redis:
        wait_until(lambda: redis.pubsub_numsub("sse")[0][1] == 0, "nobody to listen")
    wait_until_heard_again(broker)
    they_publish(theirs, "again")
    for client in clients.values():
        assert client.next().data == "again"
        client.sock.close()
    assert http(server.url("/pid"))[0] == 200


def wait_until_heard_again(broker: RedisServer) -> None:
    with broker.client() as redis:
        wait_until(lambda: redis.pubsub_numsub("sse")[0][1] == 1, "another to listen")


def test_the_payload_of_ours_is_theirs_but_for_a_space(ours: Flask, broker: RedisServer) -> None:
    with broker.client() as client, client.pubsub() as pubsub:
        pubsub.subscribe("sse")
        assert pubsub.get_message(timeout=TIMEOUT)["type"] == "subscribe"
        with ours.app_context():
            assert sse.publish("x", type="t") == 1
        payload = pubsub.get_message(timeout=TIMEOUT)["data"]
    assert json.loads(payload) == {"data": "x", "type": "t"}
    assert payload.endswith(b"} ")


@pytest.mark.parametrize("url", ["redis://localhost,password=secret", "redis://localhost:secret"])
def test_a_url_that_cannot_be_read_is_refused_without_its_password(url: str) -> None:
    app = Flask(__name__)
    app.config.update(SSE_REDIS_URL=url, SOCKETS_BROKER_URL="memory://")
    with pytest.raises(ValueError, match=r"^SSE_REDIS_URL: expected a URL such as") as named:
        app.register_blueprint(sse, url_prefix="/stream")
    assert "secret" not in "".join(traceback.format_exception(named.value))
    del app.config["SSE_REDIS_URL"]
    app.register_blueprint(sse, url_prefix="/stream")
    app.config["SSE_REDIS_URL"] = url  # too late for an error at the start
    with app.app_context():
        for use in (lambda: sse.publish("hello"), lambda: sse.redis):
            with pytest.raises(BrokerError, match="expected a URL such as") as refused:
                use()
            assert "secret" not in "".join(traceback.format_exception(refused.value))
