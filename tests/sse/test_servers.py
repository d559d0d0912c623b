"""Streams over real servers, a real Redis and nginx: what they bring, and what goes wrong."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import psutil
import pytest

from flask_sockets2 import Publisher
from tests.brokers.servers import RedisServer
from tests.clients import http
from tests.event_client import Event, EventClient
from tests.processes import Server, Servers, unused_port, wait_until
from tests.proxies import nginx_in_front
from tests.sse.site import SOURCE, Site, on_each_worker
from tests.turbo.browser import network_to

StartServer = Callable[..., Server]

EVERY_SERVER = ["flask_sockets2.worker", "gevent", "gthread", "flask run"]


def start(servers: Servers, how: str = "flask_sockets2.worker", **config: object) -> Site:
    environ = {f"FLASK_{name}": str(value) for name, value in config.items()}
    if how == "flask run":
        return Site(servers.flask_run(SOURCE, environ=environ))
    args = ["--threads=20", "--worker-connections=3000"]
    return Site(servers.gunicorn(SOURCE, worker=how, args=args, environ=environ))


@pytest.mark.quick
@pytest.mark.parametrize("how", EVERY_SERVER)
def test_events_come_and_are_resumed_on_every_server(how: str, server_factory: Servers) -> None:
    site = start(server_factory, how)
    with site.open().opened() as one, site.open("?channel=sse&channel=b").opened() as both:
        assert site.publish("1") == 2
        assert site.publish("2", "b", "?type=t&id=own") == 1
        assert one.next().data == "1"
        assert [both.next()[:2] for _ in range(2)] == [("message", "1"), ("t", "2")]
        both.opened()
        last = one.dispatcher.last_id
    site.publish("3")
    with site.open(last_event_id=last) as again:
        assert again.next().data == "3"
    with site.open("?channel=sse&channel=b", last_event_id=f"{last},start") as again:
        assert sorted(again.next().data for _ in range(2)) == ["2", "3"]


def test_a_stream_under_our_worker_on_the_wire(server_factory: Servers) -> None:
    site = start(server_factory, SSE_RETRY=0)
    with site.open().opened() as client:
        site.publish("hello", query="?type=greeting")
        event = client.next()
        head = re.sub(rb"(Server|Date|X-Process): [^\r]*", rb"\1: ?", client.head)
        assert head == (
            b"HTTP/1.1 200 OK\r\n"
            b"Content-Type: text/event-stream; charset=utf-8\r\n"
            b"Cache-Control: no-cache, no-transform\r\n"
            b"X-Accel-Buffering: no\r\n"
            b"X-Process: ?\r\n"
            b"Date: ?\r\n"
            b"Connection: close"
        )
        epoch = event.last_id.partition("-")[0]
        assert client.raw.decode() == (
            f"retry:0\nid:{epoch}-0\n\nevent:greeting\ndata:hello\nid:{epoch}-1\n\n"
        )


def test_who_leaves_is_seen_at_once_under_our_worker(server_factory: Servers) -> None:
    site = start(server_factory, SSE_HEARTBEAT=3600)
    with site.open().opened(), site.open().opened():
        site.wait_for_subscribers(2)
    site.wait_for_subscribers(0)


@pytest.mark.parametrize("how", ["gevent", "gthread"])
def test_who_leaves_is_seen_at_the_next_heartbeat_elsewhere(
    how: str, server_factory: Servers
) -> None:
    site = start(server_factory, how, SSE_HEARTBEAT=0.2)
    with site.open().opened():
        site.wait_for_subscribers(1)
    site.wait_for_subscribers(0)


def events_up_to_the_end(client: EventClient) -> list[Event]:
    found = []
    try:
        while True:
            found.append(client.next())
    except EOFError:
        return found


@pytest.mark.parametrize("how", ["flask_sockets2.worker", "gthread"])
def test_a_subscriber_that_stops_reading_is_disconnected_and_resumes(
    how: str, server_factory: Servers
) -> None:
    site = start(server_factory, how, SOCKETS_HISTORY_BYTES=2**25)
    with site.open(receive_buffer=4096) as slow, site.open() as other:
        slow.opened()
        other.opened()
        filler = threading.Thread(
            target=http, args=(site.server.url("/fill/sse"),), kwargs={"data": b"x"}
        )
        filler.start()
        for _ in range(100):
            assert len(other.next().data) == 100_000
        filler.join()
        site.wait_for_subscribers(1)
        got = len(events_up_to_the_end(slow))
        assert got < 100
    with site.open(last_event_id=slow.dispatcher.last_id) as again:
        for _ in range(100 - got):
            assert len(again.next().data) == 100_000
        assert again.dispatcher.last_id == other.dispatcher.last_id


@pytest.mark.parametrize("how", EVERY_SERVER)
def test_histories_longer_than_the_buffer_come_whole_and_in_order(
    how: str, server_factory: Servers
) -> None:
    site = start(
        server_factory, how, SOCKETS_HISTORY_BYTES=2**24, SOCKETS_SEND_BUFFER=2**16, SSE_HEARTBEAT=1
    )
    for channel in ("sse", "b"):
        http(site.server.url(f"/fill/{channel}"), data=b"x")
    query = "?channel=sse&channel=b"
    with site.open(query, last_event_id="start", receive_buffer=2**18) as slow:
        events = [slow.opened().next() for _ in range(50)]
        site.publish("meanwhile", "b")
        events += [slow.next() for _ in range(151)]
    assert [event.type for event in events] == ["message"] * 201
    assert events[-1].data == "meanwhile"
    assert [seen_of(event) for event in events] == list(range(1, 202)), "one at a time, in order"
    # It comes back with an id from the middle, and gets exactly the rest.
    with site.open(query, last_event_id=events[120].last_id) as again:
        rest = [again.next() for _ in range(80)]
    assert [seen_of(event) for event in rest] == list(range(122, 202))
    assert rest[-1].last_id == events[-1].last_id


def seen_of(event: Event) -> int:
    """How many messages a stream has brought, by the positions that an event names."""
    offsets = [position.rpartition("-")[2] for position in event.last_id.split(",")]
    return sum(int(offset) for offset in offsets if offset.isdigit())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flask_sockets2.worker", "gthread"])
def test_those_who_never_read_hold_no_copy_of_a_history(how: str, server_factory: Servers) -> None:
    """30 MB of it, which ten streams would hold ten times; and they are dropped at last."""
    site = start(
        server_factory, how, SOCKETS_HISTORY_BYTES=2**24, SOCKETS_SEND_TIMEOUT=15, SSE_HEARTBEAT=1
    )
    for channel in ("sse", "b", "c"):
        http(site.server.url(f"/fill/{channel}"), data=b"x")
    query = "?channel=sse&channel=b&channel=c"
    (worker,) = psutil.Process(site.server.process.pid).children()
    with site.open(query, last_event_id="start") as whole:
        for _ in range(300):  # what is made of each message for the wire is made
            whole.next()
    memory = worker.memory_info().rss
    with ExitStack() as stack:
        for _ in range(10):
            client = site.open(query, last_event_id="start", receive_buffer=4096)
            stack.enter_context(client).opened()
        growth: list[int] = []

        def are_dropped() -> bool:
            growth.append(worker.memory_info().rss - memory)
            return bool(site.state()["subscribers"] == 0)

        wait_until(are_dropped, "all to be dropped")
    assert max(growth) < 2**26


def test_subscribers_that_vanish_without_a_word_are_dropped(server_factory: Servers) -> None:
    """Their network is gone: nothing is acknowledged any more, and no FIN comes."""
    site = start(
        server_factory, SSE_HEARTBEAT=0.3, SOCKETS_SEND_TIMEOUT=1, SOCKETS_SEND_BUFFER=65536
    )
    with network_to(site.server) as network, ExitStack() as stack:
        lost = [
            stack.enter_context(EventClient(network.port, "/stream").opened()) for _ in range(50)
        ]
        here = stack.enter_context(site.open().opened())
        assert site.publish("all") == 51
        assert {client.next().data for client in [*lost, here]} == {"all"}
        network.pause()
        deadline = time.monotonic() + 30
        text, number = "x" * 50_000, 0
        while site.publish(text) > 1:  # heartbeats alone fill a buffer only slowly
            number += 1
            assert len(here.next().data) == len(text)
            assert time.monotonic() < deadline
        site.wait_for_subscribers(1)
        network.resume()


def test_nginx_with_its_buffers_on_lets_events_through_at_once(
    nginx: Callable[[Server], Server], server_factory: Servers
) -> None:
    site = start(server_factory)
    text = "gzip on; gzip_types text/event-stream;\n"
    proxied = nginx_in_front(
        server_factory,
        site.server.port,
        f"{text}location / {{\n    proxy_pass http://127.0.0.1:8000;\n}}\n",
    )
    through = Site(site.server, proxied.port)
    with through.open().opened() as client:
        assert "content-encoding" not in client.headers
        for number in range(5):
            site.publish(str(number))
            assert client.next(2.0).data == str(number)
        assert "x-accel-buffering" not in client.headers  # nginx has taken it
    site.wait_for_subscribers(0)


# -- Redis ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_event_comes_once_and_in_order_over_restarts_of_the_server(
    server_factory: Servers, broker: RedisServer
) -> None:
    """Killed in the middle of publishing, with a publisher that is not."""
    config = {"SOCKETS_BROKER_URL": broker.url, "SOCKETS_HISTORY_SIZE": 5000}
    port = unused_port()
    environ = {f"FLASK_{name}": str(value) for name, value in config.items()}

    def serve() -> Server:
        return server_factory.gunicorn(SOURCE, args=["-w", "2"], port=port, environ=environ)

    server = serve()
    stop = threading.Event()
    published = {"a": 0, "b": 0}

    def publish() -> None:
        with Publisher(broker.url, history_size=5000) as publisher:
            while not stop.wait(0.005):
                for channel in published:
                    published[channel] += 1
                    data = f"{channel}{published[channel]}"
                    publisher.publish(f"sse:{channel}", {"data": data})

    thread = threading.Thread(target=publish)
    got: list[str] = []
    last = ""
    thread.start()
    try:
        for attempt in range(4):
            with EventClient(
                port, "/stream?channel=a&channel=b", last_event_id=last
            ).opened() as client:
                for _ in range(40):
                    event = client.next()
                    assert event.type == "message"
                    got.append(event.data)
                last = client.dispatcher.last_id
            if attempt % 2:
                os.killpg(server.process.pid, signal.SIGKILL)
                server.process.wait()
                server = serve()
    finally:
        stop.set()
        thread.join()
    for channel, number in published.items():
        of_channel = [int(each[1:]) for each in got if each[0] == channel]
        assert of_channel == list(range(of_channel[0], of_channel[0] + len(of_channel)))
        assert len(of_channel) <= number


@pytest.mark.quick
def test_all_workers_streams_get_what_any_of_them_publishes(
    server_factory: Servers, broker: RedisServer
) -> None:
    server = server_factory.gunicorn(
        SOURCE, args=["-w", "2"], environ={"FLASK_SOCKETS_BROKER_URL": broker.url}
    )
    site = Site(server)
    clients = list(on_each_worker(server, 2).values())
    wait_until(lambda: site.publish("count") == 2, "the counts of both")
    for client in clients:
        assert client.next().data == "count"
        client.sock.close()


def test_streams_stay_while_redis_is_away_and_go_on_when_it_is_back(
    server_factory: Servers, broker: RedisServer
) -> None:
    site = start(server_factory, SOCKETS_BROKER_URL=f"{broker.url}?socket_timeout=1")
    with site.open().opened() as client:
        site.publish("before")
        assert client.next().data == "before"
        broker.pause()  # it answers no more, and forgets nothing
        status, _, _ = http(site.server.url("/publish/sse"), data=b"lost")
        assert status == 500
        broker.resume()

        def publishes() -> bool:
            return http(site.server.url("/publish/sse"), data=b"after")[0] == 200

        wait_until(publishes, "Redis to be back")
        texts = [client.next().data]
        while texts[-1] != "after":
            texts.append(client.next().data)
        assert set(texts) <= {"lost", "after"}  # whether the first was published is not known
        broker.restart()  # with nothing left: another log
        wait_until(publishes, "Redis to be back")
        event = client.next()
        while event.type != "gap":
            event = client.next()
        assert event.json() == {"channel": "sse"}
        last = client.dispatcher.last_id
    with site.open(last_event_id=last) as again:
        site.publish("new")
        texts = [again.next().data]
        while texts[-1] != "new":
            texts.append(again.next().data)
        assert set(texts) <= {"after", "new"}


def test_redis_may_be_away_at_the_start(server_factory: Servers, broker: RedisServer) -> None:
    broker.kill()
    broker.path.unlink(missing_ok=True)
    site = start(server_factory, REDIS_URL=broker.url)
    with site.open().read_head() as client:
        assert (client.status, client.headers["retry-after"]) == (503, "5")
    broker.start()
    with site.open().opened() as client:
        assert site.publish("hello") >= 1
        assert client.next().data == "hello"


# -- many ------------------------------------------------------------------------------------------


def redis_connections(broker: RedisServer) -> int:
    with broker.client() as client:
        return len(client.client_list()) - 1


@pytest.mark.slow
def test_hundreds_of_streams_on_one_worker_share_one_connection_that_listens(
    server_factory: Servers, broker: RedisServer
) -> None:
    site = start(server_factory, SOCKETS_BROKER_URL=broker.url, SSE_HEARTBEAT=2)
    [worker] = psutil.Process(site.server.process.pid).children()
    with site.open().opened(), site.open().opened():  # what only the first ones open
        site.publish("first")
    connections, threads = redis_connections(broker), worker.num_threads()
    with ExitStack() as stack:
        clients = [stack.enter_context(site.open().opened()) for _ in range(500)]
        for number in range(3):
            site.publish(str(number))
            assert {client.next().data for client in clients} == {str(number)}
        assert redis_connections(broker) <= connections
        assert worker.num_threads() <= threads
        with broker.client() as client:
            listening = [each for each in client.client_list() if int(each["sub"])]
            listening += [each for each in client.client_list() if int(each.get("ssub", 0))]
        assert len({each["id"] for each in listening}) == 1
    site.wait_for_subscribers(0)
    assert "Traceback" not in site.server.output
