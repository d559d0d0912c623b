"""What programs have that were written for gevent-websocket, beside the connection itself."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_sockets2 import WebSocketServer
from flask_sockets2.connection.connection import Connection
from flask_sockets2.connection.lifecycle import Lifecycle
from tests.clients import http
from tests.processes import Server, Servers, accepts, servers_in, unused_port
from tests.servers.test_gevent import PATCHED, SERVE
from tests.sites import on
from tests.wire_client import TEXT, WireClient, close_frame, connect, frame, request

pytestmark = pytest.mark.slow

SOURCE = """
from flask import Flask
from flask_sockets2 import Sockets
from werkzeug.middleware.dispatcher import DispatcherMiddleware

NAMED = {"/list": ["graphql-ws"], "/none": None, "/empty": ""}

app = Flask(__name__)
app.app_protocol = lambda path: NAMED.get(path, "graphql-ws")
sockets = Sockets(app)


def tell(ws):
    ws.send(ws.receive())


for rule in ("/graphql", "/list", "/none", "/empty"):
    sockets.add_url_rule(rule, rule, tell)
sockets.add_url_rule("/routes", "routes", tell, subprotocols=["chat"])


@sockets.route("/explicit", accept=False)
def explicit(ws):
    ws.accept(subprotocol="chat")


@sockets.route("/clients")
def clients(ws):
    while not ws.closed:
        message = ws.receive()
        if message is None:
            continue
        for client in ws.handler.server.clients.values():
            client.ws.send(message)
"""

OURS = ("our handler", "our server", "gunicorn -k flask_sockets2.worker")
OTHERS = ("stock", "gunicorn -k gevent", "gunicorn --threads=4", "run")


def start(servers: Servers, kind: str, source: str = SOURCE) -> Server:
    if kind == "run":
        return servers.flask_run(source)
    if kind.startswith("gunicorn --threads"):
        return servers.gunicorn(source, worker=None, args=[kind.partition(" ")[2]])
    if kind.startswith("gunicorn"):
        return servers.gunicorn(source, worker=kind.partition(" -k ")[2])
    port = unused_port()
    return servers.script((PATCHED + source + SERVE[kind]).replace("PORT", str(port)), port=port)


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that lasts as long as the tests of its kind."""
    with servers_in(tmp_path_factory.mktemp("original")) as servers:
        yield start(servers, request.param)


# -- app_protocol --------------------------------------------------------------------------


def offered(server: Server, path: str, names: str | None) -> str | None:
    """Offer subprotocols; return the one that the server has selected."""
    with WireClient(server.port) as client:
        client.send(request(path, {"Sec-WebSocket-Protocol": names}))
        response = client.response()
        assert response.status == 101, response
        return response.headers.get("sec-websocket-protocol")


@on(*OURS, *OTHERS, "gevent-websocket")
@pytest.mark.parametrize(
    ("names", "selected"),
    [
        ("graphql-ws", "graphql-ws"),
        ("chat, graphql-ws", "graphql-ws"),
        ("graphql-ws,chat", "graphql-ws"),
        ("chat", None),
        (None, None),  # RFC 6455 §4.2.2: a server selects what is offered, or nothing
    ],
)
def test_app_protocol_names_the_subprotocol_if_it_is_offered(
    names: str | None, selected: str | None, running: Server
) -> None:
    assert offered(running, "/graphql", names) == selected


@on(*OURS, *OTHERS)
def test_a_part_of_an_offered_name_is_not_selected(running: Server) -> None:
    """gevent-websocket does, and the client fails (RFC 6455 §4.1)."""
    assert offered(running, "/graphql", "graphql-ws-2, x-graphql-ws") is None
    assert offered(running, "/graphql", "GraphQL-ws") is None


@on(*OURS, *OTHERS)
@pytest.mark.parametrize("path", ["/none", "/empty"])
def test_app_protocol_may_name_nothing(path: str, running: Server) -> None:
    assert offered(running, path, "graphql-ws") is None


@on(*OURS, *OTHERS)
def test_subprotocols_of_a_route_and_of_accept_come_first(running: Server) -> None:
    assert offered(running, "/routes", "graphql-ws, chat") == "chat"
    assert offered(running, "/routes", "graphql-ws") is None
    assert offered(running, "/explicit", "graphql-ws, chat") == "chat"


@on("our server", "gunicorn -k flask_sockets2.worker", "stock", "run")
def test_app_protocol_that_returns_no_name_is_an_error_that_says_so(running: Server) -> None:
    with WireClient(running.port) as client:
        client.send(request("/list", {"Sec-WebSocket-Protocol": "graphql-ws"}))
        assert client.response().status == 500
    error = r"TypeError: app_protocol\('/list'\) returned \['graphql-ws'\]; expected one subpro"
    running.wait_for_output(error, 40.0)
    assert offered(running, "/list", None) is None


@pytest.mark.parametrize("kind", ["our server", "gunicorn -k flask_sockets2.worker", "stock"])
def test_app_protocol_works_behind_middleware(kind: str, server_factory: Servers) -> None:
    """gevent-websocket asks what the server was given; here the application is asked as well."""
    around = 'app = DispatcherMiddleware(lambda *args: [], {"/api": app})\n'
    server = start(server_factory, kind, SOURCE + around)
    assert offered(server, "/api/graphql", "graphql-ws") == "graphql-ws"
    named = 'app.app_protocol = lambda path: "outer" if path == "/api/graphql" else "inner"\n'
    if kind != "stock":
        server = start(server_factory, kind, SOURCE + around + named)
        assert offered(server, "/api/graphql", "graphql-ws, outer") == "outer"


# -- handler.server.clients ----------------------------------------------------------------

NAMED = """

@sockets.route("/named/<name>")
def named(ws, name):
    handler = ws.handler
    handler.active_client.name = name
    assert handler.active_client is handler.server.clients[handler.client_address]
    assert handler.active_client.address == handler.client_address
    assert handler.active_client.ws is handler.websocket is ws
    if name == "listener":
        ws.subscribe("news")
    ws.send("ready")
    for message in ws if name != "listener" else ():
        ws.send(" ".join(sorted(client.name for client in handler.server.clients.values())))


@sockets.route("/refuses", accept=False)
def refuses(ws):
    ws.receive(timeout=60) if ws.accepted else connected("refuses", ws)
    return "not you", 403


def connected(name, ws):
    "Who is there while a connection is not accepted yet."
    clients = ws.handler.server.clients
    print(name, [client.name for client in clients.values()], ws.handler.client_address in clients)


@app.get("/kept")
def kept():
    import gc

    from flask_sockets2.servers.clients import Client

    gc.collect()
    return [client.name for client in gc.get_objects() if type(client) is Client]
"""


@on(*OURS, "gevent-websocket")
def test_the_sample_that_sends_to_all_clients(running: Server) -> None:
    """Of Google's App Engine: a chat by ws.handler.server.clients."""
    with connect(running.port, "/clients") as one, connect(running.port, "/clients") as two:
        for client, text in ((one, b"hello"), (two, b"to you, too")):
            client.send(frame(TEXT, text))
            assert (one.message(), two.message()) == (text, text)
        two.send(close_frame())
        two.rest()
        one.send(frame(TEXT, b"alone"))
        assert one.message() == b"alone"


@pytest.mark.parametrize("kind", OURS)
def test_a_client_keeps_what_a_program_has_set(kind: str, server_factory: Servers) -> None:
    server = start(server_factory, kind, SOURCE + NAMED)
    with (
        connect(server.port, "/named/listener") as listener,
        connect(server.port, "/named/one") as one,
        connect(server.port, "/named/two") as two,
    ):
        for client in (listener, one, two):
            assert client.message() == b"ready"
        one.send(frame(TEXT, b"who?"))
        assert one.message() == b"listener one two"
        with WireClient(server.port) as refused:
            refused.send(request("/refuses"))
            assert refused.response().status == 403
        server.wait_for_output(r"refuses \['\w+', '\w+', '\w+'\] False", 40.0)
        for client in (listener, two):
            client.send(close_frame())
            client.rest()
        one.send(frame(TEXT, b"who?"))
        assert one.message() == b"one"
        one.send(close_frame())
        one.rest()

    def nobody() -> bool:
        return http(server.url("/kept"), timeout=40.0)[1].strip() == "[]"

    server.wait_for(nobody, "the clients to be gone", 40.0)


def test_clients_of_two_servers_in_one_process_do_not_meet(server_factory: Servers) -> None:
    first, second = unused_port(), unused_port()
    end = f"""
import gevent
from flask_sockets2 import WebSocketServer
gevent.spawn(WebSocketServer(("127.0.0.1", {first}), app).serve_forever)
WebSocketServer(("127.0.0.1", {second}), app).serve_forever()
"""
    server = server_factory.script(PATCHED + SOURCE + end, port=second)
    server.wait_for(lambda: accepts(first), "the first server", 40.0)
    with connect(first, "/clients") as one, connect(second, "/clients") as two:
        two.send(frame(TEXT, b"second"))
        assert two.message() == b"second"
        one.send(frame(TEXT, b"first"))
        assert one.message() == b"first"


def test_clients_of_a_unix_socket_are_all_there(server_factory: Servers, tmp_path: Path) -> None:
    """They have one address between them, so that gevent-websocket knows the newest only."""
    path = tmp_path / "socket"
    end = f"""
from gevent import socket
from flask_sockets2 import WebSocketServer
listener = socket.socket(socket.AF_UNIX)
listener.bind({str(path)!r})
listener.listen()
print("bound", flush=True)
WebSocketServer(listener, app).serve_forever()
"""
    (tmp_path / "unix.py").write_text(PATCHED + SOURCE + end)
    server = server_factory.start([sys.executable, "unix.py"], cwd=tmp_path)
    server.wait_for_output("^bound", 40.0)
    peers = []
    try:
        for _ in range(2):
            peer = socket.socket(socket.AF_UNIX)
            peers.append(peer)
            peer.settimeout(40.0)
            peer.connect(str(path))
            peer.sendall(request("/clients"))
            assert peer.recv(1000).startswith(b"HTTP/1.1 101 ")
        peers[0].sendall(frame(TEXT, b"hi"))
        assert [peer.recv(4) for peer in peers] == [b"\x81\x02hi"] * 2
    finally:
        for peer in peers:
            peer.close()


# -- WebSocketApplication and Resource -----------------------------------------------------

RESOURCE = """
from collections import OrderedDict

from flask import Flask
from flask_sockets2 import WebSocketServer
from geventwebsocket.protocols.base import BaseProtocol
from geventwebsocket.resource import Resource, WebSocketApplication

flask_app = Flask(__name__)
flask_app.add_url_rule("/", view_func=lambda: "page")


class Protocol(BaseProtocol):
    PROTOCOL_NAME = "chat"


class Chat(WebSocketApplication):
    protocol_class = Protocol

    def on_open(self):
        self.ws.handler.active_client.nickname = self.ws.path
        assert self.protocol.server is self.ws.handler.server
        assert self.protocol.handler is self.ws.handler

    def on_message(self, message):
        if message is None:
            return
        names = [client.nickname for client in self.ws.handler.server.clients.values()]
        for client in self.ws.handler.server.clients.values():
            client.ws.send(f"{message} {sorted(names)}")

    def on_close(self, reason):
        print("closed", self.ws.handler.active_client.nickname, flush=True)


app = Resource(OrderedDict([("/chat", Chat), ("/", flask_app)]))
"""


@pytest.mark.parametrize("kind", ["our server", "gunicorn -k flask_sockets2.worker"])
def test_a_resource_of_gevent_websocket_is_served(kind: str, server_factory: Servers) -> None:
    server = start(server_factory, kind, RESOURCE)
    assert http(server.url("/"), timeout=40.0)[:2] == (200, "page")
    assert offered(server, "/chat", "other") is None
    with connect(server.port, "/chat/a", {"Sec-WebSocket-Protocol": "chat"}) as client:
        client.send(frame(TEXT, b"hello"))
        assert client.message() == b"hello ['/chat/a']"
        client.send(close_frame())
        assert client.closing() == (1000, "")
    server.wait_for_output("^closed /chat/a", 40.0)
    assert "Traceback" not in server.output


@pytest.mark.parametrize(("name", "instead"), [("debug", "level"), ("pre_start_hook", "refuse in")])
def test_arguments_of_gevent_websockets_server_name_what_is_there_instead(
    name: str, instead: str
) -> None:
    with pytest.raises(TypeError, match=f"no argument '{name}': .*{instead}"):
        WebSocketServer(("127.0.0.1", 0), None, **{name: True})


# -- attributes that are not there ---------------------------------------------------------

GONE = """

@sockets.route("/attribute/<path:names>")
def attribute(ws, names):
    try:
        found = ws
        for name in names.split("/"):
            found = getattr(found, name)
    except AttributeError as exc:
        ws.send(f"AttributeError: {exc}")
    else:
        ws.send(f"found: {found}")
"""


@pytest.fixture(scope="module")
def attributes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with a route that tells of an attribute of its connection."""
    with servers_in(tmp_path_factory.mktemp("attributes")) as servers:
        yield start(servers, request.param, SOURCE + GONE)


def told(server: Server, names: str) -> str:
    with connect(server.port, f"/attribute/{names}") as client:
        return client.message().decode()


EVERYWHERE = {
    "stream": "ws.receive() and ws.send()",
    "stream/handler/socket": "ws.handler.socket",
    "current_app": "flask.current_app",
    "raw_read": "ws.receive()",
    "raw_write": "ws.send_frame()",
    "read_message": "ws.receive()",
    "read_frame": "ws.receive()",
    "handle_close": "ws.close_code",
    "handle_ping": "answered",
    "handle_pong": "ws.latency",
    "clients": "sockets.publish(channel, data)",
}


@pytest.mark.parametrize("attributes", ["our server", "stock"], indirect=True)
@pytest.mark.parametrize("name", EVERYWHERE)
def test_the_error_for_an_attribute_names_what_is_there_instead(
    name: str, attributes: Server
) -> None:
    said = told(attributes, name)
    assert said.startswith(f"AttributeError: a connection has no {name.split('/')[0]!r}: ")
    assert EVERYWHERE[name] in said


@pytest.mark.parametrize("attributes", OTHERS, indirect=True)
@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("handler/server/clients", "ws.subscribe(channel)"),
        ("handler/active_client", "sockets.publish(channel, data)"),
        ("handler/client_address", 'ws.environ["REMOTE_ADDR"]'),
        ("handler/socket", "start the program with -k flask_sockets2.worker"),
        ("handler/websocket", "use ws"),
        ("handler/environ", "use ws.environ"),
    ],
)
def test_elsewhere_the_error_for_one_of_the_handler_does(
    name: str, instead: str, attributes: Server
) -> None:
    said = told(attributes, name)
    assert said.startswith(f"AttributeError: ws.handler has no {name.split('/')[1]!r}: ")
    assert instead in said


@pytest.mark.parametrize("attributes", OURS[1:], indirect=True)
@pytest.mark.parametrize(
    "name",
    [
        "environ/copy",
        "handler/active_client/ws/handler/client_address",
        "handler/environ",
        "handler/server/clients",
        "handler/socket/setsockopt",
        "handler/websocket/send",
        "logger/debug",
        "origin",
        "path",
        "protocol",
        "version",
    ],
)
def test_other_attributes_of_gevent_websockets_are_there(name: str, attributes: Server) -> None:
    assert told(attributes, name).startswith("found: ")


def test_an_attribute_that_nobody_has_is_an_ordinary_error() -> None:
    ws = Connection(Lifecycle({}, lambda timeout: (None, b"")))  # type: ignore[arg-type, return-value]
    with pytest.raises(AttributeError, match=r"^a connection has no 'recieve'$"):
        _ = ws.recieve
    assert not hasattr(ws, "stream")
