"""What is said where a broker cannot be used: each mistake in a URL, a server or a user, made."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
import trustme
from redis import Redis
from redis import exceptions as errors

from flask_sockets2 import BrokerError, Publisher
from flask_sockets2.brokers.redis.broker import RedisBroker
from flask_sockets2.brokers.redis.errors import broker_error
from tests.processes import unused_port

from .conftest import NO_SERVER, Recorder
from .servers import RedisCluster, RedisServer, TlsProxy, server_binary

OwnServer = Callable[..., RedisServer]

DOCS = Path(__file__).parents[2] / "docs" / "several-workers.rst"
SECRET = "s3cr3t"


def said(url: str, call: Callable[[Publisher], object] = lambda p: p.publish("news", "x")) -> str:
    """What a publisher raises, without any part of a password anywhere."""
    with Publisher(url) as publisher, pytest.raises(BrokerError) as caught:
        call(publisher)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__
    return str(caught.value)


def permissions(prefix: str) -> list[str]:
    """Those that the documentation grants a user."""
    [rules] = re.findall(r"ACL SETUSER web on >password ((?:.*\n)+?)\n", DOCS.read_text())
    return str(rules).replace("flask_sockets2:", f"{prefix}:").split()


@pytest.fixture
def tls(own_server: OwnServer) -> Iterator[TlsProxy]:
    proxy = TlsProxy(own_server(), trustme.CA().issue_cert("127.0.0.1"))
    yield proxy
    proxy.close()


class Rewritten:
    """A proxy in front of a server, which changes what that says of itself."""

    def __init__(self, server: RedisServer, old: bytes, new: bytes) -> None:
        self._path, self._old, self._new = str(server.path), old, new
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with ExitStack() as stack, suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                upstream = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
                upstream.connect(self._path)
                stack.enter_context(client)
                for target, args in (
                    (self._copy, (client, upstream)),
                    (self._change, (upstream, client)),
                ):
                    threading.Thread(target=target, args=args, daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)

    def _change(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(re.sub(self._old, self._same_size, data))

    def _same_size(self, match: re.Match[bytes]) -> bytes:
        assert len(self._new) <= len(match[0])
        return self._new + b"\r" * (len(match[0]) - len(self._new))


# -- TLS -----------------------------------------------------------------------------------


def test_tls_that_the_server_does_not_speak_is_named(own_server: OwnServer) -> None:
    port = own_server(port=unused_port()).port
    error = said(f"rediss://ann:{SECRET}@127.0.0.1:{port}/2?socket_timeout=1")
    assert error == (
        f"rediss://127.0.0.1:{port}/2 does not speak TLS; use redis:// in the URL, or its tls-port"
    )


@pytest.mark.parametrize("user", ["", f"ann:{SECRET}@"])
def test_tls_that_only_the_server_speaks_is_named(user: str, tls: TlsProxy) -> None:
    error = said(f"redis://{user}127.0.0.1:{tls.port}")
    assert error == f"redis://127.0.0.1:{tls.port}/0 speaks TLS; use rediss:// in the URL"


def test_a_certificate_that_is_not_trusted_is_named(tls: TlsProxy) -> None:
    error = said(f"rediss://:{SECRET}@127.0.0.1:{tls.port}")
    assert "certificate verify failed" in error
    assert "; name the authority of its certificate by ?ssl_ca_certs=/path in the URL" in error


def test_a_file_of_certificates_that_is_not_there_is_named(tls: TlsProxy, tmp_path: Path) -> None:
    error = said(f"rediss://127.0.0.1:{tls.port}?ssl_ca_certs={tmp_path}/none.pem")
    assert "No such file" in error
    assert error.endswith("; correct the path of the file in an option of the URL")


# -- addresses -----------------------------------------------------------------------------


def test_a_host_that_does_not_resolve_is_named() -> None:
    error = said(f"redis://ann:{SECRET}@no-host.invalid:6379/0")
    assert error.startswith("cannot reach redis://no-host.invalid:6379/0: ")
    assert error.endswith("; correct the name of the host in the URL, or see whether its DNS works")


def test_a_unix_socket_that_is_not_there_is_named(tmp_path: Path) -> None:
    error = said(f"unix://ann:{SECRET}@{tmp_path}/none.sock")
    assert error.startswith(f"cannot reach unix://{tmp_path}/none.sock: ")
    assert error.endswith("; start the server, or correct the path of the socket in the URL")


def test_a_port_that_nobody_listens_on_is_named(unused_port: int) -> None:
    error = said(f"redis://ann:{SECRET}@127.0.0.1:{unused_port}")
    assert error.endswith("Connection refused; start the server or correct the URL")


@pytest.mark.parametrize("port", ["99999", SECRET])
def test_a_port_that_is_none_is_refused_at_once(port: str) -> None:
    with pytest.raises(BrokerError, match="the port is a number up to 65535") as caught:
        Publisher(f"redis://localhost:{port}/0")
    assert SECRET not in str(caught.value)


# -- what the server refuses ---------------------------------------------------------------


def test_a_database_that_is_not_there_is_named(own_server: OwnServer) -> None:
    server = own_server(port=unused_port())
    assert said(f"{server.tcp_url}/99") == (
        f"{server.tcp_url}/99 refused: DB index is out of range; it has no database of that "
        "number; correct the end of the URL, or raise its databases"
    )


@pytest.mark.parametrize(
    ("configured", "user", "remedy"),
    [
        ("", f":{SECRET}@", "leave the password out of the URL, or set its requirepass"),
        ("", f"ann:{SECRET}@", "correct user and password in the URL"),
        ("other", f":{SECRET}@", "correct user and password in the URL"),
        ("other", "", "put user and password in the URL"),
    ],
    ids=["no password is set", "no such user", "wrong password", "no password is given"],
)
def test_a_login_that_is_wrong_is_named(
    configured: str, user: str, remedy: str, own_server: OwnServer
) -> None:
    args = ("--requirepass", configured) if configured else ()
    port = own_server(*args, port=unused_port()).port
    error = said(f"redis://{user}127.0.0.1:{port}")
    assert error.startswith(f"redis://127.0.0.1:{port}/0 refused: ")
    assert error.endswith(f"; {remedy}"), error


@pytest.mark.parametrize("user", ["", f":{SECRET}@"])
def test_a_server_that_refuses_a_login_is_not_asked_whether_it_speaks_tls(
    user: str, own_server: OwnServer
) -> None:
    """Each call would wait two seconds more for its answer."""
    server = own_server("--requirepass", "other", port=unused_port())
    with Redis.from_url(server.url, password="other") as client:
        before = client.info("stats")["total_connections_received"]
        said(f"redis://{user}127.0.0.1:{server.port}")
        assert client.info("stats")["total_connections_received"] == before + 1


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        (("~*", "&*", "+@all", "-evalsha"), "'evalsha' command"),
        (("~*", "&*", "+@all", "-xadd"), "'xadd' command"),
        (("~other:*", "&*", "+@all"), "permissions to access a key"),
        (("~*", "resetchannels", "+@all"), "permissions to access a channel"),
    ],
)
def test_a_permission_that_is_missing_is_named_with_the_names_to_grant(
    rules: tuple[str, ...], named: str, own_server: OwnServer
) -> None:
    server = own_server()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "web", "on", f">{SECRET}", *rules)
    error = said(f"unix://web:{SECRET}@{server.path}")
    assert named in error
    assert "user_script" not in error
    assert error.endswith(
        "; grant its user the keys ~flask_sockets2:*, the pub/sub channels &flask_sockets2:* and "
        'the commands that are listed under "Permissions" in docs/several-workers.rst'
    )


def test_the_names_to_grant_begin_with_the_applications_prefix(own_server: OwnServer) -> None:
    server = own_server()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "web", "on", f">{SECRET}", "+@all")
    url = f"unix://web:{SECRET}@{server.path}"
    with (
        Publisher(url, prefix="shop") as publisher,
        pytest.raises(BrokerError, match=r"the keys ~shop:\*, the pub/sub channels &shop:\* and"),
    ):
        publisher.publish("news", "x")


def test_a_user_with_the_permissions_of_the_documentation_may_do_all(
    own_server: OwnServer, make_redis: Callable[..., RedisBroker], prefix: str
) -> None:
    server = own_server()
    with server.client() as client:
        rules = permissions(prefix)
        client.execute_command("ACL", "SETUSER", "web", "on", ">password", *rules)
    recorder = Recorder()
    broker = make_redis(recorder, url=f"unix://web:password@{server.path}?db=3")
    start = broker.subscribe("news")
    with Publisher(f"unix://web:password@{server.path}?db=3", prefix=prefix) as publisher:
        publisher.publish_many([("news", "1"), ("sport", "2")])
        publisher.disconnect(user="ann")
        recorder.wait_for(b"1")
        assert len(broker.history("news", start).messages) == 1
        broker.join("news", "ann")
        broker.count("news", 1)
        assert publisher.present("news") == ["ann"]
        recorder.wait(lambda: publisher.subscribers("news") == 1 or None, "the count")
        assert broker.hold("job", "me", 1.0)
        broker.leave("news", "ann")
        recorder.wait(lambda: publisher.present("news") == [] or None, "ann to leave")
        broker.unsubscribe("news")
    with server.client() as client:
        denied = client.execute_command("ACL", "LOG")
    assert denied == []


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    if server_binary() is None:
        pytest.skip(NO_SERVER)
    nodes = RedisCluster()
    yield nodes
    nodes.remove()


@pytest.mark.parametrize("granted", [True, False])
def test_of_a_cluster_a_user_may_ask_where_things_are(
    granted: bool, cluster: RedisCluster, make_redis: Callable[..., RedisBroker], prefix: str
) -> None:
    [rules] = re.findall(r"On a cluster also ``(.*?)``", DOCS.read_text())
    for node in cluster.nodes:
        with node.client() as client:
            own = [*permissions(prefix), *(rules.split() if granted else [])]
            client.execute_command("ACL", "SETUSER", "web", "reset", "on", ">password", *own)
    broker = make_redis(Recorder(), url=cluster.url.replace("://", "://web:password@"))
    if granted:
        for channel in "abcdef":  # on all nodes
            assert broker.subscribe(channel) == broker.position(channel)
            broker.join(channel, "ann")
            assert broker.present(channel) == ["ann"]
    else:
        with pytest.raises(BrokerError, match="grant its user CLUSTER SLOTS and COMMAND"):
            broker.position("a")


# -- other servers -------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["5.0.14", "6.0.20", "3.2.1"])
def test_a_server_that_is_too_old_is_named_with_its_version(
    version: str, own_server: OwnServer
) -> None:
    new = f"redis_version:{version}".encode()
    with closing(Rewritten(own_server(), rb"redis_version:\d+\.\d+\.\d+\r\n", new)) as old:
        error = said(f"redis://127.0.0.1:{old.port}")
    assert error == (
        f"redis://127.0.0.1:{old.port}/0 is a server of Redis {version}, and 6.2 or newer is "
        "needed; update it, or use Valkey"
    )


def test_a_cluster_that_is_too_old_is_named_with_its_version(own_server: OwnServer) -> None:
    server = own_server("--cluster-enabled", "yes", "--cluster-port", str(unused_port()))
    with closing(Rewritten(server, rb"redis_version:\d+\.\d+\.\d+", b"redis_version:6.2.7")) as old:
        error = said(f"redis://127.0.0.1:{old.port}")
    assert "is a cluster of Redis 6.2.7, and 7.0 or newer is needed" in error


def test_a_sentinel_is_named(own_server: OwnServer) -> None:
    server = own_server()
    with closing(
        Rewritten(server, rb"(?:redis|server)_mode:standalone", b"redis_mode:sentinel")
    ) as one:
        error = said(f"redis://127.0.0.1:{one.port}")
    assert error.endswith(
        "is a Sentinel, which is not spoken; use an address that follows the primary"
    )


def test_a_node_of_a_cluster_that_cannot_be_known_as_one_is_named(own_server: OwnServer) -> None:
    server = own_server("--cluster-enabled", "yes", "--cluster-port", str(unused_port()))
    with server.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 1)
        client.execute_command(
            *("ACL", "SETUSER", "web", "on", f">{SECRET}", "~*", "&*", "+@all", "-info")
        )
    error = said(f"unix://web:{SECRET}@{server.path}")
    assert re.search(
        "; it is a node of a cluster, .*|; wait until its nodes serve all slots", error
    )


def test_a_cluster_has_no_other_database(own_server: OwnServer) -> None:
    server = own_server("--cluster-enabled", "yes", "--cluster-port", str(unused_port()))
    error = said(f"unix://{server.path}?db=3")
    assert "; it has no database of that number" in error or "database 0 alone" in error


@pytest.mark.parametrize(
    "banner", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$x\r\n", b"*1\r\n:a\r\n"]
)
def test_another_server_is_none_of_redis(banner: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client, suppress(OSError):
                        while client.recv(65536):
                            client.sendall(banner)

        threading.Thread(target=serve, daemon=True).start()
        port = listener.getsockname()[1]
        error = said(f"redis://ann:{SECRET}@127.0.0.1:{port}?socket_timeout=5")
        listener.shutdown(socket.SHUT_RDWR)
    assert error == (
        f"what listens at redis://127.0.0.1:{port}/0 does not answer as Redis does; correct the "
        "URL, for it may lead to another server"
    )


# -- passwords -----------------------------------------------------------------------------

KINDS = (errors.ConnectionError, errors.ResponseError, errors.TimeoutError)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_that_holds_the_password_is_told_without_it(kind: type[Exception]) -> None:
    error = str(broker_error(kind("AUTH ann s3cret failed, s3cret"), "redis://a", "s3cret"))
    assert "s3cret" not in error
    assert "AUTH ann *** failed, ***" in error


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_password_an_error_is_told_as_it_is(kind: type[Exception]) -> None:
    assert "the end came early" in str(broker_error(kind("the end came early."), "redis://a", ""))
