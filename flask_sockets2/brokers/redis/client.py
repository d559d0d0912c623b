"""RedisClient: connections that run scripts on a server, or on the nodes of a cluster.

Connections are opened at their first use. If gevent has patched ``socket``, each native thread has
its own connections, since a socket belongs to the hub of its thread.
"""

from __future__ import annotations

import re
import socket
import ssl
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from ...exceptions import BrokerError

try:
    from redis import exceptions as errors
    from redis.backoff import NoBackoff
    from redis.cluster import RedisCluster
    from redis.connection import BlockingConnectionPool
    from redis.retry import Retry
except ImportError as exc:
    raise BrokerError(
        "a broker of redis://, rediss:// or unix:// needs the package redis, which is not "
        'installed; run pip install "flask-sockets2[redis]"'
    ) from exc

from .errors import broker_error
from .scripts import Call

__all__ = ["SOCKET_TIMEOUT", "RedisClient"]

SOCKET_TIMEOUT = 5.0  # seconds for one answer, and for connecting; a URL may set others
_SAYING = 0.2  # seconds for a server to send the reason why it hangs up
_PROBING = 2.0  # seconds for an unreachable server to show whether it speaks TLS
_OLDEST, _OLDEST_CLUSTER = (6, 2), (7, 0)  # versions of Redis; Valkey reports 7.2
_CONNECTIONS = 32  # for commands in parallel; further callers wait up to the timeout

_PLACE = frozenset(("host", "port", "path"))

_ANSWERS = (errors.ResponseError, errors.AuthenticationError, errors.BusyLoadingError)
"""Errors that a server sends in the Redis protocol, so the choice of TLS was right."""

_OURS = frozenset({"protocol", "decode_responses", "encoding", "encoding_errors"})
"""Options that a URL cannot set, since answers are read as bytes."""

# Text that other libraries put behind a host, or that belongs to a password with a raw slash.
_NOT_IN_HOST = re.compile(r"[^\w.:%\[\]-]")
_NOT_IN_PATH = re.compile(r"@/|[&;,]\w*=")
_OPTION = re.compile(r"(unexpected|Invalid)(?: keyword argument| value for) '(\w+)'")
"""The option that redis-py refuses."""


class _Servers(NamedTuple):
    """The connections of one process, or of one native thread."""

    pool: BlockingConnectionPool
    #: A RedisCluster, which knows the slots and is half untyped; None for a single server.
    cluster: Any
    pools: dict[str, BlockingConnectionPool]  # by name of the cluster's node


class RedisClient:
    """Runs scripts on a server, or on the nodes of a cluster.

    :param url: URL of the server, as redis-py reads URLs.
    :param timeout: seconds for one answer, if the URL sets no timeout.
    :param prefix: prefix of all names on the server, for error messages.
    :raises BrokerError: if the URL cannot be read.

    No command is retried, since a retry could publish a message twice. A connection that was closed
    while idle is noticed before its next use.
    """

    def __init__(self, url: str, timeout: float, prefix: str = "") -> None:
        self._timeout = timeout
        self._prefix = prefix
        self._clustered: bool | None = None  # not known before the first use
        scheme = url.partition("://")[0]
        try:
            self._url = _without_ours(url)
            pool = self._new_pool()
            pool.connection_class(**pool.connection_kwargs)
        except (TypeError, ValueError) as exc:
            raise BrokerError(
                "expected a URL such as redis://user:password@host:6379/0, got one of the scheme "
                f"{scheme if '://' in url else ''!r}: {_what_is_wrong(exc, url)}"
            ) from None
        options = pool.connection_kwargs
        self.db = int(options.get("db") or 0)
        self._password = str(options.get("password") or "")
        host, port = options.get("host", "localhost"), options.get("port", 6379)
        place = options.get("path") or f"{host}:{port}/{self.db}"
        self.shown = f"{scheme}://{place}"
        """The URL without user and password."""
        self._place: dict[str, Any] = {name: options[name] for name in _PLACE & options.keys()}
        self._local: Any = _store()

    def _options(self) -> dict[str, Any]:
        return {
            "socket_timeout": self._timeout,
            "socket_connect_timeout": self._timeout,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }

    def _new_pool(self) -> BlockingConnectionPool:
        pool = BlockingConnectionPool.from_url(
            self._url,
            **{"max_connections": _CONNECTIONS, "timeout": self._timeout, **self._options()},
        )
        pool.connection_kwargs["redis_connect_func"] = partial(_greet, pool)
        return pool

    def _servers(self) -> _Servers:
        servers: _Servers | None = getattr(self._local, "servers", None)
        if servers is None:
            pool = self._new_pool()
            if self._clustered is None:
                self._clustered = _is_cluster(pool, self.shown)
            cluster = (
                RedisCluster.from_url(self._url, **self._options()) if self._clustered else None
            )
            servers = self._local.servers = _Servers(pool, cluster, {})
        return servers

    @property
    def clustered(self) -> bool:
        """Whether the server is a node of a cluster; the first call asks the server."""
        if self._clustered is None:
            self._translated(self._servers)
        return bool(self._clustered)

    @property
    def verb(self) -> str:
        """The command that publishes."""
        return "SPUBLISH" if self.clustered else "PUBLISH"

    def run(self, calls: Sequence[Call]) -> list[Any]:
        """Run scripts and return their results, in the order of the calls.

        On a cluster the keys of each call are in one slot, and no two calls depend on their order.

        :raises BrokerError: if the server cannot be reached, or refuses a call.
        """
        replies: list[Any] = self._translated(lambda: self._exchange(calls))
        for reply in replies:
            if isinstance(reply, errors.RedisError):
                raise self.error(reply) from reply
        return replies

    def replies(self, calls: Sequence[Call]) -> list[Any]:
        """Run scripts and return their results; a BrokerError for each call that is refused.

        :raises BrokerError: if the server cannot be reached, or is a replica.
        """
        return [
            self.error(reply) if isinstance(reply, errors.RedisError) else reply
            for reply in self._translated(lambda: self._exchange(calls))
        ]

    def _exchange(self, calls: Sequence[Call]) -> list[Any]:
        servers = self._servers()
        if servers.cluster is None:
            return _exchange(servers.pool, calls)
        return self._run_on_nodes(servers, calls)

    def _pool_of(self, servers: _Servers, name: str) -> BlockingConnectionPool:
        """Return the connection pool of a node."""
        pool = servers.pools.get(name)
        if pool is None:
            host, _, port = name.rpartition(":")
            pool = self._new_pool()
            pool.connection_kwargs.update(host=host, port=int(port))
            pool = servers.pools.setdefault(name, pool)
        return pool

    def _run_on_nodes(self, servers: _Servers, calls: Sequence[Call]) -> list[Any]:
        cluster = servers.cluster
        by_node: dict[str, list[int]] = {}
        for i, call in enumerate(calls):
            by_node.setdefault(cluster.get_node_from_key(call.keys[0]).name, []).append(i)
        replies: list[Any] = [None] * len(calls)
        for name, own in by_node.items():
            try:
                found = _exchange(self._pool_of(servers, name), [calls[i] for i in own])
            except (errors.ConnectionError, errors.TimeoutError):
                cluster.nodes_manager.initialize()  # another node may have the slots by now
                raise
            for i, reply in zip(own, found, strict=True):
                if isinstance(reply, (errors.AskError, errors.TryAgainError, errors.ClusterError)):
                    reply = cluster.execute_command(*calls[i].in_full())
                replies[i] = reply
        return replies

    # -- for the listener ------------------------------------------------------------------

    def node_of(self, name: bytes) -> str:
        """Return the cluster node that has a pub/sub channel, '' if there is no cluster.

        :raises BrokerError: if the servers cannot be reached.
        """

        def ask() -> Any:
            cluster = self._servers().cluster
            return cluster.get_node_from_key(name).name if cluster is not None else ""

        return str(self._translated(ask))

    def refresh(self) -> None:
        """Ask the cluster again which node has which slots.

        :raises BrokerError: if the servers cannot be reached.
        """

        def ask() -> None:
            cluster = self._servers().cluster
            if cluster is not None:
                cluster.nodes_manager.initialize()

        self._translated(ask)

    def connection(self, node: str) -> Any:
        """Return a new connection to a node, outside any pool and not yet connected.

        :raises BrokerError: if the servers cannot be reached.
        """

        def make() -> Any:
            servers = self._servers()
            pool = self._pool_of(servers, node) if node else servers.pool
            return pool.connection_class(**pool.connection_kwargs)

        return self._translated(make)

    # -- errors ----------------------------------------------------------------------------

    def _translated(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except (errors.RedisError, errors.RedisClusterException, OSError) as exc:
            if isinstance(exc, BrokerError):
                raise
            raise self.error(exc) from exc

    def error(self, exc: Exception) -> BrokerError:
        """Return a BrokerError with a remedy for an error of redis-py."""
        if self._clustered is None and not isinstance(exc, _ANSWERS):  # never reached
            tls = self.shown.startswith("rediss:")
            if tls and _speaks_plainly(self._place):
                return BrokerError(
                    f"{self.shown} does not speak TLS; use redis:// in the URL, or its tls-port"
                )
            if not tls and not isinstance(exc, errors.TimeoutError) and _speaks_tls(self._place):
                return BrokerError(f"{self.shown} speaks TLS; use rediss:// in the URL")
        return broker_error(exc, self.shown, self._password, self._prefix)

    # -- the end ---------------------------------------------------------------------------

    def forget(self) -> None:
        """Leave all connections to the parent, in the child of a fork."""
        self._local = _store()

    def close(self) -> None:
        """Close the connections; under gevent, other native threads close theirs as they end."""
        servers: _Servers | None = getattr(self._local, "servers", None)
        self._local = _store()
        if servers is not None:
            for pool in (servers.pool, *servers.pools.values()):
                pool.disconnect()
            if servers.cluster is not None:
                servers.cluster.close()


def _what_is_wrong(exc: Exception, url: str) -> str:
    """Return the mistake in a URL and the remedy, without any part of the password."""
    option = _OPTION.search(str(exc))
    query = url.partition("?")[2]
    if option is not None and option[1] == "unexpected" and ("password=" in url or "@" in query):
        # If a password holds an & or a ?, redis-py reads the rest as an option. After a ?, the @ in
        # front of the host is part of the query.
        return "one of its options is unknown; write an & in the password as %26, and a ? as %3F"
    if option is not None:
        return f"its option {option[2]!r} is unknown or has a wrong value; see those of redis-py"
    # The error's text may hold a part of the password, if the password holds a slash.
    return (
        "it cannot be read; the port is a number up to 65535, and special characters of the "
        "password are written as %2F"
    )


def _without_ours(url: str) -> str:
    """Return a URL without the options that a URL cannot set.

    :raises BrokerError: if the database is not a number (redis-py would read 0), if host or path
        may hold a part of the password, or if a socket's path is missing.
    """
    address, _, query = url.partition("?")
    parts = urlsplit(address)
    _, has_user, host = parts.netloc.rpartition("@")
    if parts.scheme == "unix":
        if not parts.path.strip("/"):
            raise BrokerError(
                "expected a URL such as unix:///run/redis.sock, got one without a socket's path"
            )
        fits = (not host or has_user) and not _NOT_IN_PATH.search(parts.path)
    else:
        fits = not _NOT_IN_HOST.search(host)
    if not fits:
        raise BrokerError(
            "expected a URL such as redis://user:password@host:6379/0?db=0 or "
            "unix://user:password@/path?db=0, got one whose host or path holds more than that; "
            "write special characters of the password as %2F, and options after the ?"
        )
    if parts.scheme != "unix" and not re.fullmatch("(/[0-9]*)?", parts.path):
        raise BrokerError(
            "expected a URL such as redis://user:password@host:6379/0, got one without the number "
            "of a database, or nothing, after the host; write a slash in the password as %2F"
        )
    kept = [(name, value) for name, value in parse_qsl(query) if name not in _OURS]
    return f"{address}?{urlencode(kept)}"


def _store() -> Any:
    """Return a store of connections for this process; if gevent patched, one per native thread."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("socket"):
        return SimpleNamespace()
    return monkey.get_original("_thread", "_local")()


def _greet(pool: BlockingConnectionPool, connection: Any) -> None:
    """Set up a new connection as redis-py does, and find out why a server hangs up.

    A server at its client limit sends an error and hangs up. If the client writes first, the error
    may be lost; so another connection only reads.

    :raises redis.RedisError: if the server refuses the connection, with the server's error.
    """
    try:
        connection.on_connect()
    except errors.ConnectionError as exc:
        said = _said_at_once(pool.connection_kwargs) if _is_broken(exc) else None
        if said is None:
            raise
        raise said from exc


def _is_broken(exc: Exception) -> bool:
    """Return whether a connection broke without any answer of the server."""
    return type(exc) is errors.ConnectionError and not str(exc).startswith("max number of clients")


def _said_at_once(options: Mapping[str, Any]) -> errors.ResponseError | None:
    """Return the error that a server sends before any command, None if the server is silent."""
    try:
        with _plain_socket(options) as sock:
            sock.settimeout(_SAYING)
            line = sock.recv(512).partition(b"\r\n")[0]
    except OSError:
        return None
    if not line.startswith(b"-"):
        return None
    return errors.ResponseError(line[1:].decode("latin-1").removeprefix("ERR "))


def _plain_socket(options: Mapping[str, Any]) -> socket.socket:
    """Return a connection without TLS, on which a server that speaks TLS says nothing."""
    timeout = options.get("socket_connect_timeout")
    if "path" not in options:
        address = options.get("host", "localhost"), options.get("port", 6379)
        return socket.create_connection(address, timeout)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(timeout)
        sock.connect(options["path"])
    except BaseException:
        sock.close()
        raise
    return sock


def _speaks_plainly(options: Mapping[str, Any]) -> bool:
    """Return whether a server answers without TLS."""
    try:
        with _plain_socket({**options, "socket_connect_timeout": _PROBING}) as sock:
            sock.settimeout(_PROBING)
            sock.sendall(b"PING\r\n")
            return sock.recv(1) in (b"+", b"-")
    except OSError:
        return False


def _speaks_tls(options: Mapping[str, Any]) -> bool:
    """Return whether a server answers a TLS handshake, even by refusing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # loading authorities takes some 45 ms
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # no data follows the handshake
    try:
        with (
            _plain_socket({**options, "socket_connect_timeout": _PROBING}) as sock,
            context.wrap_socket(sock, do_handshake_on_connect=False) as tls,
        ):
            tls.settimeout(_PROBING)
            tls.do_handshake()
            return True
    except ssl.SSLError as exc:
        return "ALERT" in (exc.reason or "")
    except OSError:
        return False


def _is_cluster(pool: BlockingConnectionPool, shown: str) -> bool:
    """Return whether a server is a node of a cluster.

    :raises BrokerError: if the server is too old, or a Sentinel.
    """
    replies = _converse(pool, [("INFO", "server"), ("INFO", "cluster")])
    for reply in replies:
        if isinstance(reply, errors.NoPermissionError):
            return False
        if isinstance(reply, errors.RedisError):
            raise reply
    server, cluster = replies
    clustered = b"cluster_enabled:1" in cluster
    if b"redis_mode:sentinel" in server:
        raise BrokerError(
            f"{shown} is a Sentinel, which is not spoken; use an address that follows the primary"
        )
    version = re.search(rb"redis_version:(\d+)\.(\d+)[\w.-]*", server)
    needed = _OLDEST_CLUSTER if clustered else _OLDEST
    if version is not None and (int(version[1]), int(version[2])) < needed:
        raise BrokerError(
            f"{shown} is a {'cluster' if clustered else 'server'} of Redis "
            f"{version[0].decode().partition(':')[2]}, and {needed[0]}.{needed[1]} or newer is "
            "needed; update it, or use Valkey"
        )
    return clustered


def _exchange(pool: Any, calls: Sequence[Call]) -> list[Any]:
    """Run scripts; if the server refuses a call, its error is in the place of the result."""
    replies = _converse(pool, [call.by_name() for call in calls])
    unknown = [i for i, reply in enumerate(replies) if isinstance(reply, errors.NoScriptError)]
    if unknown:
        # EVAL runs in any case, and the server knows the script afterwards.
        again = _converse(pool, [calls[i].in_full() for i in unknown])
        for i, reply in zip(unknown, again, strict=True):
            replies[i] = reply
    return replies


def _converse(pool: Any, commands: Sequence[Sequence[Any]]) -> list[Any]:
    """Send commands in one piece and read the answers."""
    connection = pool.get_connection()
    try:
        connection.send_packed_command(connection.pack_commands(commands))
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(connection.read_response())
            except errors.ReadOnlyError:
                raise  # the server became a replica; its address may lead to the new primary
            except errors.ResponseError as exc:
                replies.append(exc)
        return replies
    except BaseException:
        connection.disconnect()  # unread answers are still to come
        raise
    finally:
        pool.release(connection)
